import pytest
import torch

from unfreeze.errors import UsageError
from unfreeze.models.build import build
from unfreeze.models.shape_trace import trace_forward
from unfreeze.models.stem import first_convolution


@pytest.mark.parametrize(
    ("arch", "last"),
    [("resnet18", "layer4"), ("timm/resnet18", "layer4"), ("timm/resnetv2_50", "stages.3")],
)
def test_pain_17_a_small_image_reaches_the_last_stage_with_a_layout(arch, last, meta):
    assert trace_forward(meta(arch), (32, 32)).shapes[last][2:] == (1, 1)
    assert trace_forward(meta(arch, stem="small"), (32, 32)).shapes[last][2:] == (4, 4)


def test_the_new_convolution_is_3x3_and_learns():
    torch.manual_seed(0)
    model = build("resnet18", stem="small")
    assert model.conv1.weight.shape == (64, 3, 3, 3)
    assert model.conv1.bias is None
    # kaiming, fan out: deviation sqrt(2 / (64 * 9))
    assert model.conv1.weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.1)


@pytest.mark.parametrize("arch", ["vgg11", "vit_b_32", "timm/convnext_atto"])
def test_networks_without_such_a_stem_say_so(arch, meta):
    with pytest.raises(UsageError, match="No small stem"):
        meta(arch, stem="small")


def test_our_own_networks_have_one_stem_and_it_is_small(meta):
    for stem in ("imagenet", "small"):
        assert meta("unfreeze/small", stem=stem).stem[0].kernel_size == (3, 3)


def test_the_first_convolution_is_named(meta):
    assert first_convolution(meta("resnet18")) == "conv1.weight"
    assert first_convolution(meta("timm/vit_tiny_patch16_224")) == "patch_embed.proj.weight"
