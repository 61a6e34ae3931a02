"""Features and logits of one pass are those of two networks."""

import copy

import pytest
import torch

from unfreeze.models.build import build
from unfreeze.models.head import remove_head, replace_head
from unfreeze.transfer.known_images import LogitsAndFeatures


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("unfreeze/tiny", "replace"),
        ("unfreeze/tiny", "mlp:16"),
        ("torchvision/squeezenet1_1", "replace"),
        ("timm/test_vit", "replace"),
        ("torchvision/resnet18", "append"),
    ],
)
def test_features_are_the_heads_inputs_and_logits_those_of_the_network(arch, head):
    torch.manual_seed(0)
    network = build(arch)
    images = torch.randn(3, 3, 160, 160) if "vit" in arch else torch.randn(3, 3, 64, 64)
    bare = copy.deepcopy(network)
    names = replace_head(network, 4, kind=head)
    remove_head(bare)
    both = LogitsAndFeatures(network, names).eval()
    bare.eval()
    with torch.no_grad():
        outputs, features, logits = both(images), bare(images), network.eval()(images)
    if head == "append":  # its inputs are the scores of the old head
        assert outputs.shape == (3, 1000 + 4)
    else:
        assert torch.allclose(outputs[:, 4:], features, atol=1e-5)
    assert torch.equal(outputs[:, :4], logits)
