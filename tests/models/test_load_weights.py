import shutil
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from unfreeze.checkpoints.model_file import ModelCard, save_model
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import WeightsError
from unfreeze.models.build import build
from unfreeze.models.head import remove_head, replace_head
from unfreeze.models.load_weights import load_strict, load_weights
from unfreeze.models.weight_sources import default_preprocess, read_weights

TINY = "unfreeze/tiny"


@pytest.fixture
def trained():
    """A tiny network whose every entry differs from a fresh one's."""
    torch.manual_seed(1)
    model = build(TINY)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn_like(tensor.float()) * 3)
    return model


@pytest.fixture
def saved(tmp_path, trained):
    """`saved(prefix, **more)` writes the network's state as a file; returns its path."""

    def save(prefix="", drop=(), **more):
        state = {prefix + k: v for k, v in trained.state_dict().items() if not k.startswith(drop)}
        torch.save({"epoch": 3, "state_dict": state | more}, tmp_path / "w.pth")
        return str(tmp_path / "w.pth")

    return save


def same_backbone(model, other):
    theirs = other.state_dict()
    return all(
        torch.equal(tensor, theirs[name])
        for name, tensor in model.state_dict().items()
        if not name.startswith("head.")
    )


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.backbone."])
def test_a_file_is_loaded_but_for_its_head(saved, trained, prefix):
    model = build(TINY)
    replace_head(model, 5)
    head = model.head.weight.clone()
    loaded = load_weights(model, saved(prefix), arch=TINY)
    assert loaded.share == 1.0
    assert same_backbone(model, trained)
    assert torch.equal(model.head.weight, head)
    assert not any(name.startswith("head") for name in loaded.matched)
    assert loaded.missing == loaded.unexpected == ()
    assert loaded.preprocess is None
    assert loaded.source.endswith("w.pth [state_dict]")


def test_the_head_is_loaded_where_asked(saved, trained):
    model = build(TINY)
    loaded = load_weights(model, saved(), arch=TINY, skip_head=False)
    assert torch.equal(model.head.weight, trained.head.weight)
    assert "head.weight" in loaded.matched


def test_a_network_without_a_head_is_loaded_whole(saved, trained):
    model = build(TINY)
    remove_head(model)
    assert load_weights(model, saved(), arch=TINY).unexpected == ("head.weight", "head.bias")
    assert same_backbone(model, trained)


def test_pain_6_a_published_swav_file(tmp_path):
    torch.manual_seed(0)
    model = build("resnet18")
    state = {f"module.{k}": v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    state["module.projection_head.0.weight"] = torch.zeros(8, 512)
    state["module.prototypes.weight"] = torch.zeros(30, 8)
    torch.save(state, tmp_path / "swav.pth.tar")
    other = build("resnet18")
    loaded = load_weights(other, str(tmp_path / "swav.pth.tar"), arch="resnet18")
    assert loaded.share == 1.0
    assert loaded.unexpected == (
        "module.projection_head.0.weight",
        "module.prototypes.weight",
    )
    assert torch.equal(other.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
    assert "ResNet18_Weights.IMAGENET1K_V1 assumed" in loaded.source
    assert loaded.preprocess.resize == 256


def test_buffers_are_loaded_but_not_counted(saved, trained):
    model = build(TINY)
    load_weights(model, saved(), arch=TINY)
    assert torch.equal(model.stem[1].running_var, trained.stem[1].running_var)


def test_pain_4_another_network_is_refused_and_nothing_is_touched(saved):
    model = build("resnet18")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"holds .*% of the parameters of torchvision/resnet18"):
        load_weights(model, saved(), arch="resnet18")
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_both_sides_are_named(tmp_path, meta):
    torch.save(build("resnet18").state_dict(), tmp_path / "r18.pth")
    with pytest.raises(WeightsError) as refused:
        load_weights(meta("vgg11"), str(tmp_path / "r18.pth"), arch="vgg11")
    for word in ("ResNet-18", "conv1.weight 64x3x7x7", "torchvision/vgg11", "features.0.weight"):
        assert word in refused.value.sentence


def test_less_than_nine_tenths_is_refused(saved):
    with pytest.raises(WeightsError, match="holds"):
        load_weights(build(TINY), saved(drop=("stage1.", "stage2.")), arch=TINY)


def test_what_is_missing_above_nine_tenths_is_listed(saved):
    loaded = load_weights(build(TINY), saved(drop=("stem.0.",)), arch=TINY)
    assert 0.9 < loaded.share < 1
    assert loaded.missing == ("stem.0.weight",)


def test_lost_statistics_are_refused(saved, trained):
    lost = tuple(name for name, _ in trained.named_buffers())
    with pytest.raises(WeightsError, match="lacks batch-norm statistics"):
        load_weights(build(TINY), saved(drop=lost), arch=TINY)


def test_a_small_stem_is_not_left_random_beside_loaded_weights(tmp_path):
    torch.save(build("resnet18").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="first convolution") as refused:
        load_weights(build("resnet18", stem="small"), str(tmp_path / "w.pth"), arch="resnet18")
    assert "--stem imagenet" in refused.value.next_step
    torch.save(build("resnet18", stem="small").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="first convolution") as refused:
        load_weights(build("resnet18"), str(tmp_path / "w.pth"), arch="resnet18")
    assert "--stem small" in refused.value.next_step


def test_one_other_shape_is_refused_even_above_nine_tenths(saved):
    path = saved(**{"stage1.bn1.weight": torch.zeros(7)})
    with pytest.raises(WeightsError, match=r"stage1\.bn1\.weight: 7 instead of 32"):
        load_weights(build(TINY), path, arch=TINY)


@pytest.mark.parametrize("inside", ["", "model"])
def test_a_run_brings_its_preprocessing(tmp_path, trained, inside):
    wanted = Preprocess(16, 16, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    card = ModelCard(kind="backbone", arch=TINY, preprocess=wanted.as_dict())
    save_model(tmp_path / "model", trained.state_dict(), card)
    model = build(TINY)
    loaded = load_weights(model, str(tmp_path / inside), arch=TINY)
    assert loaded.preprocess == wanted
    assert loaded.source.endswith(f"({TINY})")
    assert same_backbone(model, trained)


def test_half_precision_is_loaded_into_full(tmp_path, trained):
    state = {name: tensor.half() for name, tensor in trained.state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    model = build(TINY)
    assert load_weights(model, str(tmp_path / "half.safetensors"), arch=TINY).share == 1.0
    assert model.stem[0].weight.dtype == torch.float32
    assert torch.equal(model.stem[0].weight, trained.stem[0].weight.half().float())


def test_none_loads_nothing(trained):
    model = build(TINY)
    loaded = load_weights(model, "none", arch=TINY)
    assert (loaded.share, loaded.source, loaded.preprocess) == (None, "none", None)


def test_our_own_networks_have_no_published_weights():
    with pytest.raises(WeightsError, match="no published weights called 'imagenet'") as refused:
        load_weights(build(TINY), "imagenet", arch=TINY)
    assert "--weights none" in refused.value.next_step


@pytest.mark.parametrize("spec", ["absent.pth", "runs/absent", "./absent"])
def test_an_absent_file_is_not_taken_for_a_name(spec, meta):
    with pytest.raises(WeightsError, match="No such file or folder"):
        load_weights(meta("resnet18"), spec, arch="resnet18")


@pytest.mark.parametrize(
    ("arch", "has"), [("resnet50", "IMAGENET1K_V1, IMAGENET1K_V2"), ("timm/resnet50", "a1_in1k")]
)
def test_an_unknown_name_lists_what_there_is(arch, has, meta):
    with pytest.raises(WeightsError, match="no weights called 'IMAGENET22K'") as refused:
        load_weights(meta(arch), "IMAGENET22K", arch=arch)
    assert has in refused.value.next_step


@pytest.mark.parametrize("spec", ["imagenet", "IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"])
def test_trap_xi_the_exact_weights_are_recorded(spec, tmp_path, monkeypatch):
    # what a download would have left in torch's cache
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    theirs = build("resnet18")
    torch.save(theirs.state_dict(), tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    model = build("resnet18")
    loaded = load_weights(model, spec, arch="resnet18")
    assert loaded.source == "torchvision ResNet18_Weights.IMAGENET1K_V1"
    assert torch.equal(model.conv1.weight, theirs.conv1.weight)
    assert loaded.preprocess == Preprocess(224, 256)


def offline(*_, **__):
    raise URLError("Name or service not known")


@pytest.mark.parametrize("arch", ["resnet18", "timm/resnet18"])
def test_a_download_that_fails_names_the_way_out(arch, meta, tmp_path, monkeypatch):
    model = meta(arch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(WeightsError, match=r"could not be downloaded .*Name or service") as refused:
        load_weights(model, "imagenet", arch=arch)
    assert "--weights FILE" in refused.value.next_step
    assert refused.value.exit_code == 4


def test_an_address_is_downloaded_once_and_its_hash_is_checked(tmp_path, saved, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    there = tmp_path / "there"
    there.mkdir()
    shutil.copy(saved("module."), there / "plain.pth")
    shutil.copy(saved("module."), there / "named-0123456789.pth")
    address = (there / "plain.pth").as_uri()
    assert load_weights(build(TINY), address, arch=TINY).share == 1.0
    (there / "plain.pth").unlink()
    assert load_weights(build(TINY), address, arch=TINY).source.startswith(address)
    with pytest.raises(WeightsError, match="hash"):
        load_weights(build(TINY), (there / "named-0123456789.pth").as_uri(), arch=TINY)


def test_real_squeezenet_weights_see_what_is_in_a_image(shared):
    path = shared / "weights" / "squeezenet1_1-imagenet.pth"
    model = build("squeezenet1_1")
    loaded = load_weights(model, str(path), arch="squeezenet1_1", skip_head=False)
    assert loaded.share == 1.0
    assert loaded.preprocess == Preprocess(224, 256)
    reference = torchvision.models.squeezenet1_1(weights=None)
    reference.load_state_dict(torch.load(path, weights_only=True))
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(image), reference.eval()(image))


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_trap_iv_every_torchvision_network_has_its_own_preprocessing(name):
    wanted, source = default_preprocess(f"torchvision/{name}")
    assert wanted.resize >= wanted.image_size >= 224
    assert source.count(".") == 1


@pytest.mark.parametrize(
    ("arch", "size", "resize", "interpolation"),
    [
        ("torchvision/resnet50", 224, 232, "bilinear"),
        ("torchvision/inception_v3", 299, 342, "bilinear"),
        ("torchvision/efficientnet_b0", 224, 256, "bicubic"),
        ("timm/resnet50", 224, 235, "bicubic"),
        ("timm/inception_v4", 299, 341, "bicubic"),
    ],
)
def test_trap_iv_known_preprocessings(arch, size, resize, interpolation):
    wanted, _ = default_preprocess(arch)
    assert (wanted.image_size, wanted.resize, wanted.interpolation) == (size, resize, interpolation)


def test_trap_iv_some_weights_want_one_half():
    assert default_preprocess("timm/inception_v4")[0].mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("arch", ["mnasnet0_5", "squeezenet1_1", TINY])
def test_saved_entries_go_back_where_they_came_from(arch, tmp_path):
    torch.manual_seed(0)
    model, other = build(arch), build(arch)
    save_model(tmp_path, model.state_dict(), ModelCard(kind="classifier", arch=arch))
    load_strict(other, read_weights(str(tmp_path), arch).tensors)
    mine, theirs = model.state_dict(), other.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_entries_that_differ_are_refused():
    model = nn.Linear(2, 3)
    for wrong in (
        {"weight": torch.zeros(3, 2)},
        {"weight": torch.zeros(3), "bias": torch.zeros(3)},
    ):
        with pytest.raises(WeightsError, match="differ in 1 entries"):
            load_strict(model, wrong)
