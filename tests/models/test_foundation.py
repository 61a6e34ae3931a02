"""timm's foundation backbones: the feature, the sizes and the preprocessing are timm's own."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from unfreeze.cli.main import main
from unfreeze.errors import UsageError, WeightsError
from unfreeze.models import timm_weights, weight_sources
from unfreeze.models.build import build
from unfreeze.models.head import remove_head
from unfreeze.models.identify_file import arch_of_weights
from unfreeze.models.load_weights import load_weights
from unfreeze.models.position_embeddings import padded_size
from unfreeze.models.weight_sources import default_preprocess, licence_of, read_weights
from unfreeze.transfer.initialize import build_start

DINOV2 = "timm/vit_small_patch14_dinov2.lvd142m"
TOWERS = {  # name -> image size to test, a multiple of the patch size
    DINOV2: 56,
    "timm/vit_small_patch14_reg4_dinov2.lvd142m": 56,
    "timm/vit_small_patch16_dinov3.lvd1689m": 64,
    "timm/vit_base_patch16_siglip_224.webli": 64,
    "timm/vit_base_patch16_clip_224.openai": 64,
    "timm/eva02_tiny_patch14_224.mim_in22k": 56,
}
CREATE = timm.create_model


@pytest.fixture
def shallow(monkeypatch):
    """timm's networks with one block of their own, and nothing of the hub."""

    def create(name, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("no route to huggingface.co\nand more")
        return CREATE(name, depth=1, **options)

    monkeypatch.setattr(timm, "create_model", create)
    return create


@pytest.mark.parametrize("arch", TOWERS)
def test_the_feature_from_a_file_is_timms_own_at_any_size(arch, shallow, tmp_path):
    """Saved at the size of the pretraining, loaded by us and by timm for another one."""
    name, side = arch.removeprefix("timm/"), TOWERS[arch]
    torch.manual_seed(0)
    published = shallow(name)
    state = published.state_dict()
    for key in state:
        if "pos_embed" in key or key.endswith(("latent", "token")):
            state[key].normal_()
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    theirs = shallow(name, num_classes=0, img_size=side)
    fixed = timm.models.load_state_dict(path)
    filtered = timm.models.vision_transformer.checkpoint_filter_fn
    if type(theirs).__name__ == "Eva":
        filtered = timm.models.eva.checkpoint_filter_fn
    theirs.load_state_dict(filtered(fixed, theirs), strict=False)
    ours = build(arch)
    loaded = load_weights(ours, str(path), arch=arch)
    remove_head(ours)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = theirs.eval().forward_head(theirs.forward_features(x), pre_logits=True)
        assert torch.allclose(ours.eval()(x), expected, atol=1e-5)
    assert loaded.share == 1 and padded_size(ours, side) == side
    assert padded_size(ours, side + 1) > side + 1


@pytest.mark.parametrize(
    ("name", "size", "resize", "mean", "fit"),
    [
        (DINOV2, 224, 224, 0.485, "crop"),
        ("timm/vit_small_patch16_dinov3.lvd1689m", 256, 256, 0.485, "crop"),
        ("timm/vit_base_patch16_siglip_224.webli", 224, 248, 0.5, "crop"),
        ("timm/vit_base_patch16_clip_224.openai", 224, 248, 0.48145466, "crop"),
        ("timm/vit_base_patch16_clip_384.openai_ft_in1k", 384, 384, 0.48145466, "squash"),
        ("timm/convnext_base.clip_laion2b", 256, 256, 0.48145466, "crop"),
    ],
)
def test_preprocessing_is_that_of_the_tower(name, size, resize, mean, fit):
    wanted, _ = default_preprocess(name)
    assert (wanted.image_size, wanted.resize, wanted.fit) == (size, resize, fit)
    assert wanted.mean[0] == mean and wanted.interpolation == "bicubic"


def test_every_published_preprocessing_is_understood():
    for name in timm.list_pretrained():
        wanted = timm_weights.timm_preprocess(name)
        assert min(wanted.image_size, wanted.resize) > 0
        assert timm_weights.timm_licence(name).endswith(".")


def test_licences_are_named_with_what_they_forbid():
    assert licence_of(DINOV2) == (
        "timm states the licence apache-2.0 for the weights vit_small_patch14_dinov2.lvd142m."
    )
    meta = licence_of("imagenet", "timm/vit_small_patch16_dinov3.lvd1689m")
    assert "dinov3-license" in meta and meta.endswith("read it before you use them.")
    assert "no commercial use" in timm_weights.timm_licence("hiera_tiny_224.mae")
    assert "states no licence" in timm_weights.timm_licence("vit_unheard_of")
    with pytest.raises(WeightsError, match="has no weights called 'nowhere'"):
        default_preprocess("timm/vit_tiny_patch16_224.nowhere")


def test_weights_are_named_by_their_network(shallow, tmp_path, monkeypatch):
    assert arch_of_weights(DINOV2).arch == DINOV2
    with pytest.raises(WeightsError, match="are for vit_small_patch14_dinov2, not for resnet50"):
        arch_of_weights(DINOV2, "torchvision/resnet50")
    with pytest.raises(WeightsError, match="has no weights called 'lvd9'") as refused:
        read_weights("timm/vit_small_patch14_dinov2.lvd9", "timm/vit_small_patch14_dinov2")
    assert "lvd142m" in refused.value.next_step
    with pytest.raises(UsageError, match="Unknown architecture") as refused:
        arch_of_weights("timm/vit_small_patch14_dinov9")
    assert "timm/vit_small_patch14_dinov2" in refused.value.next_step
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm").mkdir()
    save_file(build("timm/test_vit").state_dict(), tmp_path / "timm/test_vit")  # a file comes first
    assert timm_weights.weights_architecture("timm/test_vit") is None


def test_weights_by_name_are_loaded_with_licence_and_preprocessing(shallow, monkeypatch):
    torch.manual_seed(0)
    published = shallow("vit_small_patch14_dinov2.lvd142m")
    monkeypatch.setattr(
        timm, "create_model",
        lambda name, pretrained=False, **o: published if pretrained else shallow(name, **o),
    )  # fmt: skip
    start = build_start(None, DINOV2, "auto", outputs=3, side=300)
    assert start.arch == DINOV2 and start.loaded.share == 1 and start.wants.image_size == 224
    assert "apache-2.0" in start.loaded.licence == start.reasons["licence"]
    tensors = published.state_dict()
    assert torch.equal(start.network.state_dict()["pos_embed"], tensors["pos_embed"])


@pytest.mark.parametrize("gated", [False, True])
def test_what_cannot_be_downloaded_is_one_sentence(gated, shallow, monkeypatch):
    if gated:
        refusal = type("GatedRepoError", (OSError,), {})("403")
        error = RuntimeError("could not load")
        error.__cause__ = refusal

        def fails(*_, **__):
            raise error

        monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(WeightsError) as refused:
        weight_sources.read_weights(DINOV2, DINOV2)
    assert refused.value.exit_code == 4 and "\n" not in str(refused.value.sentence)
    assert ("HF_TOKEN" in refused.value.next_step) == gated
    assert "--weights FILE" in refused.value.next_step


def test_the_plan_names_licence_size_and_memory(shallow, coloured, capsys):
    data = coloured("colours", {"red": 6, "blue": 6}, 32)
    words = ["finetune", str(data), "--weights", DINOV2, "--freeze", "all", "--dry-run"]
    assert main(words) == 0
    told = capsys.readouterr().err
    assert "the licence apache-2.0" in told and "MiB in" in told and "Memory: about" in told
    assert "--image-size 518" in told and "384 features per image" in told
    assert main([*words, "--image-size", "250"]) == 0
    assert "zero-padded to 252" in capsys.readouterr().err
