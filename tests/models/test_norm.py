"""Synchronised batch norm keeps what a network computes, activations inside its layers included."""

import copy

import pytest
import torch
from torch import nn

from unfreeze.models.build import build
from unfreeze.models.norm import (
    SyncBatchNorm,
    SyncBatchNormWithActivation,
    convert_sync_batchnorm,
)

NETWORKS = (
    "torchvision/resnet18",
    "timm/mobilenetv3_small_050",  # batch norms with an activation inside
    "timm/tf_efficientnet_lite0",
    "timm/regnetx_002",
    "timm/resnet10t",
)


def alive(arch):
    """The network with batch norm statistics of images, so that no layer is constant."""
    torch.manual_seed(0)
    network = build(arch).train()
    for _ in range(3):
        network(torch.randn(8, 3, 64, 64))
    return network


@pytest.mark.parametrize("arch", NETWORKS)
def test_a_converted_network_computes_the_same(arch):
    network = alive(arch)
    converted = convert_sync_batchnorm(copy.deepcopy(network))
    kinds = {type(m) for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds <= {SyncBatchNorm, SyncBatchNormWithActivation}
    assert list(converted.state_dict()) == list(network.state_dict())
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        network.eval(), converted.eval()
        wanted = network(x)
        assert wanted.std() > 1e-3  # it computes something
        assert torch.equal(converted(x), wanted)
        if SyncBatchNormWithActivation in kinds:  # the test sees a lost activation
            for module in converted.modules():
                if isinstance(module, SyncBatchNormWithActivation):
                    module.act = nn.Identity()
            assert not torch.allclose(converted(x), wanted, rtol=0.1)
