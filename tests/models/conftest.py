"""Networks without arithmetic: what the tests of this room are run on."""

import pytest
import torch

from unfreeze.models.build import build

SAMPLE = (
    *("alexnet", "vgg11", "vgg11_bn", "googlenet", "inception_v3", "squeezenet1_1", "densenet121"),
    *("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "mnasnet0_5", "shufflenet_v2_x0_5"),
    *("regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"),
    *("convnext_tiny", "vit_b_32", "swin_t", "maxvit_t"),
    *("timm/resnet18", "timm/resnetv2_50", "timm/vit_tiny_patch16_224", "timm/convnext_atto"),
    *("timm/efficientnet_b0", "timm/mobilenetv3_small_050", "timm/swin_tiny_patch4_window7_224"),
    *("timm/deit_tiny_distilled_patch16_224", "timm/mixer_s16_224", "timm/vgg11", "timm/dla34"),
    *("unfreeze/tiny", "unfreeze/small"),
)


def on_meta(arch, **options):
    """The network without numbers; moved there where its library computes while it builds."""
    try:
        with torch.device("meta"):
            return build(arch, **options)
    except NotImplementedError:  # RegNet
        return build(arch, **options).to("meta")


@pytest.fixture
def meta():
    """`meta(arch, **options)` builds a network on the meta device."""
    return on_meta


def pytest_generate_tests(metafunc):
    """A test that takes `sampled` runs once for each architecture of the sample."""
    if "sampled" in metafunc.fixturenames:
        metafunc.parametrize("sampled", SAMPLE)
