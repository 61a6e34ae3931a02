import pytest
import torch

from unfreeze.errors import UsageError
from unfreeze.models.build import build
from unfreeze.transfer.plan import last_feature_map_size


@pytest.mark.parametrize(
    ("arch", "size", "sides"),
    [
        ("resnet50", 224, (7, 7)),
        ("resnet50", 32, (1, 1)),
        ("vgg11", 224, (7, 7)),
        ("vgg11", 32, (1, 1)),
        ("densenet121", 224, (7, 7)),
        ("squeezenet1_1", 224, (13, 13)),
        ("mobilenet_v3_small", 224, (7, 7)),
        ("efficientnet_b0", 64, (2, 2)),
        ("googlenet", 224, (7, 7)),
        ("swin_t", 224, (7, 7)),
        ("vit_b_32", 224, (7, 7)),
        ("timm/mobilenetv3_small_050", 224, (7, 7)),
        ("unfreeze/tiny", 16, (4, 4)),
        ("unfreeze/small", 32, (4, 4)),
    ],
)
def test_the_last_map_before_pooling(arch, size, sides):
    with torch.device("meta"):
        model = build(arch)
    assert last_feature_map_size(model, size) == sides


def test_a_small_stem_keeps_the_map():
    assert last_feature_map_size(build("resnet18", stem="small"), 32) == (4, 4)


def test_a_image_the_network_cannot_take_is_refused():
    with pytest.raises(UsageError, match="32x32"):
        last_feature_map_size(build("alexnet"), 32)
