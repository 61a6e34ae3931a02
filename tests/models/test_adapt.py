"""First layers of other channels and position embeddings of other grids are made to fit."""

import pytest
import timm
import torch
import torchvision
from timm.layers.pos_embed import resample_abs_pos_embed

from unfreeze.errors import WeightsError
from unfreeze.models.build import build
from unfreeze.models.identify import match_arch
from unfreeze.models.load_weights import load_weights

VIT = "timm/vit_tiny_patch16_224"


def loaded(model, state, tmp_path, arch, **options):
    torch.save(state, tmp_path / "w.pth")
    return load_weights(model, str(tmp_path / "w.pth"), arch=arch, **options)


@pytest.mark.parametrize("arch", ["resnet18", VIT, "timm/convnext_atto"])
def test_one_channel_computes_the_same_on_grey_images(arch, tmp_path):
    torch.manual_seed(0)
    grey = timm.create_model(arch.removeprefix("timm/"), in_chans=1, num_classes=5).eval()
    model = build(arch, classes=5).eval()
    found = loaded(model, grey.state_dict(), tmp_path, arch, skip_head=False)
    assert found.share == 1.0 and "first layer adapted from 1 to 3 channels" in found.account
    size = 224 if arch == VIT else 64
    x = torch.randn(1, 1, size, size)
    with torch.no_grad():
        assert torch.allclose(model(x.expand(-1, 3, -1, -1)), grey(x), atol=1e-4)
    shapes = {n: tuple(t.shape) for n, t in grey.state_dict().items()}
    assert match_arch(shapes, arch).result.mismatched == ()


def test_more_channels_are_cut_and_scaled_as_timm_does(tmp_path):
    four = timm.create_model("resnet18", in_chans=4)
    model = build("resnet18")
    found = loaded(model, four.state_dict(), tmp_path, "resnet18")
    assert (
        "first layer adapted from 4 to 3 channels (first three channels, scaled by 4/3)"
        in found.account
    )
    assert torch.allclose(model.conv1.weight, four.conv1.weight[:, :3] * 4 / 3)
    two = timm.create_model("resnet18", in_chans=2)
    loaded(model, two.state_dict(), tmp_path, "resnet18")
    assert torch.allclose(model.conv1.weight, two.conv1.weight[:, [0, 1, 0]] * 2 / 3)


def test_another_kernel_is_no_matter_of_channels(tmp_path):
    state = build("resnet18").state_dict() | {"conv1.weight": torch.zeros(64, 1, 3, 3)}
    with pytest.raises(WeightsError, match="64x1x3x3: it takes 1 channels"):
        loaded(build("resnet18"), state, tmp_path, "resnet18")


def small(size):
    """Torchvision's vision transformer, small; timm's is small enough."""
    return torchvision.models.VisionTransformer(size, 32, 1, 3, 48, 96)


@pytest.mark.parametrize(
    ("arch", "name", "patch", "size"),
    [(VIT, "pos_embed", 16, 96), ("vit_b_32", "encoder.pos_embedding", 32, 64)],
)
def test_position_embeddings_of_another_size_are_interpolated(arch, name, patch, size, tmp_path):
    torch.manual_seed(0)
    theirs, model = (
        (build(arch, image_size=size), build(arch)) if arch == VIT else (small(size), small(224))
    )
    theirs.get_parameter(name).data.normal_()
    found = loaded(model, theirs.state_dict(), tmp_path, arch)
    few, many = size // patch, 224 // patch
    said = f"position embeddings interpolated from {few}x{few} to {many}x{many}"
    assert found.share == 1.0 and said in found.account
    expected = resample_abs_pos_embed(theirs.get_parameter(name), [many, many])
    assert torch.equal(model.get_parameter(name), expected)


def test_another_number_of_tokens_that_are_no_patches_is_refused(tmp_path):
    state = build(VIT).state_dict()
    state["pos_embed"] = torch.zeros(1, 196, 192)  # a square, but without the class token
    with pytest.raises(WeightsError, match="pos_embed: 1x196x192 instead of 1x197x192"):
        loaded(build(VIT), state, tmp_path, VIT)
