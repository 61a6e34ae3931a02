import warnings

import pytest
import torch
import torchvision

from unfreeze.errors import UsageError
from unfreeze.models.build import build, canonical_arch


@pytest.mark.parametrize(
    ("written", "full"),
    [
        ("resnet50", "torchvision/resnet50"),
        ("torchvision/vit_b_16", "torchvision/vit_b_16"),
        ("timm/resnet50", "timm/resnet50"),
        ("timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("unfreeze/small", "unfreeze/small"),
    ],
)
def test_a_bare_name_means_torchvision(written, full):
    assert canonical_arch(written) == full
    assert canonical_arch(full) == full


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("resnet51", "torchvision/resnet50"),
        ("ResNet50", "torchvision/resnet50"),
        ("small", "unfreeze/small"),
        ("unfreeze/resnet18", "torchvision/resnet18"),
        ("vit_tiny_patch16_224", "timm/vit_tiny_patch16_224"),
        ("torchvision/mobilenetv3_small_050", "timm/mobilenetv3_small_050"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong, meant):
    with pytest.raises(UsageError) as refused:
        canonical_arch(wrong)
    assert meant in refused.value.next_step


def test_nonsense_shows_how_names_look():
    with pytest.raises(UsageError, match="Unknown architecture 'qqqqqqqq'"):
        canonical_arch("qqqqqqqq")


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_pain_18_no_auxiliary_heads_and_no_warnings(arch):
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("error")
        model = build(arch, classes=5)
    assert not [name for name in model.state_dict() if "aux" in name.lower()]
    scores = model.train()(torch.zeros(2, 3, 299, 299, device="meta"))
    assert isinstance(scores, torch.Tensor)
    assert scores.shape == (2, 5)
    assert model.transform_input


@pytest.mark.parametrize("arch", ["resnet18", "timm/resnet18", "unfreeze/tiny"])
def test_classes_set_the_width_of_the_head(arch):
    with torch.device("meta"):
        assert build(arch, classes=3)(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 3)


def test_a_timm_network_published_without_a_head_gets_one(meta):
    assert meta("timm/eva02_tiny_patch14_224").get_submodule("head").out_features == 1000


def test_an_unknown_stem_is_refused():
    with pytest.raises(UsageError, match="not a stem"):
        build("resnet18", stem="huge")


def test_every_name_of_torchvision_is_known():
    for name in torchvision.models.list_models(module=torchvision.models):
        assert canonical_arch(name) == f"torchvision/{name}"
