"""`--precision auto` of training: fp32 on a CPU where depthwise convolutions are trained."""

import pytest
import torch
from torch import nn
from torchvision import models

from unfreeze.models.precision import pick_training_precision, trains_depthwise
from unfreeze.runtime import device

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _bf16(monkeypatch):
    monkeypatch.setattr(device, "_cpu_supports_bf16", lambda: True)


def test_networks_with_depthwise_convolutions_train_in_fp32():
    for make in (models.mobilenet_v3_small, models.mobilenet_v2, models.convnext_tiny):
        with torch.device("meta"):
            network = make()
        assert trains_depthwise(network)
        assert pick_training_precision("auto", CPU, network)[0] == "fp32"
        assert "depthwise" in pick_training_precision("auto", CPU, network)[1]


def test_others_stay_as_they_were():
    with torch.device("meta"):
        networks = models.resnet18(), models.resnext50_32x4d(), models.vit_b_16(), nn.Linear(2, 2)
    for network in networks:
        assert pick_training_precision("auto", CPU, network) == ("bf16", "supported by the CPU")
    grey = nn.Conv2d(1, 8, 3)  # one channel in one group is an ordinary convolution
    assert not trains_depthwise(grey)


def test_a_frozen_backbone_stays_in_bf16_and_an_unfrozen_layer_does_not():
    with torch.device("meta"):
        network = models.mobilenet_v3_small()
    names = {name for name, _ in network.named_parameters()}
    assert not trains_depthwise(network, names)
    assert pick_training_precision("auto", CPU, network, names)[0] == "bf16"
    depthwise = next(
        f"{name}.weight"
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups > 1
    )
    assert trains_depthwise(network, names - {depthwise})
    assert trains_depthwise(nn.Conv2d(4, 4, 3, groups=4), ()) and not trains_depthwise(
        nn.Conv2d(4, 4, 3, groups=4), {"weight", "bias"}
    )


def test_what_is_given_and_other_hardware_is_not_changed(monkeypatch):
    network = nn.Conv2d(4, 4, 3, groups=4)
    assert pick_training_precision("bf16", CPU, network) == ("bf16", "given")
    monkeypatch.setattr(device, "_cpu_supports_bf16", lambda: False)
    assert pick_training_precision("auto", CPU, network)[1] == "no bf16 hardware on this cpu"
