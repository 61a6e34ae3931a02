"""Other programs find the names they know."""

import torch
import torchvision

from unfreeze.models.head import remove_head
from unfreeze.swav.model import SwAV
from unfreeze.swav.reference_checkpoint import published_names


def test_the_backbone_loads_strictly_into_torchvisions():
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    width = remove_head(network)
    model = SwAV(network, width, hidden=16, feat_dim=8, prototypes=4)
    tensors = published_names(model.to(memory_format=torch.channels_last))
    own = {n for n in tensors if n.startswith(("projection_head.", "prototypes."))}
    other = torchvision.models.resnet18()
    other.fc = torch.nn.Identity()
    other.load_state_dict({n: t for n, t in tensors.items() if n not in own}, strict=True)
    assert torch.equal(other.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    assert all(t.is_contiguous() for t in tensors.values())
    # in the order of the reference's optimizer: backbone, head, prototypes
    assert [n for n, _ in model.named_parameters()][-1] == "prototypes.weight"
