"""Discriminative learning rates: each stage's share, and what the optimizer then does."""

import pytest
import torch

from unfreeze.backbones.build import build
from unfreeze.backbones.head import replace_head
from unfreeze.backbones.stages import stages
from unfreeze.optim.make import decay_groups, set_lr
from unfreeze.transfer.rates import layer_scales


def test_shares_fall_with_the_distance_from_the_head():
    model = build("resnet18")
    head = replace_head(model, 3)
    scales = layer_scales(model, 0.5, head)
    assert set(scales) == {name for name, _ in model.named_parameters()}
    assert scales["fc.weight"] == 1 and scales["layer4.0.conv1.weight"] == 0.5
    assert scales["layer1.0.conv1.weight"] == 0.5**4
    assert scales["conv1.weight"] == 0.5 ** len(stages(model))
    assert layer_scales(model, 1.0, head) == {}


def test_a_step_is_in_proportion_to_its_share():
    parameters = {name: torch.nn.Parameter(torch.ones(2, 2)) for name in ("near", "far")}
    groups = decay_groups(parameters.items(), 0.0, {"far": 0.25})
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_lr(optimizer, 0.1)
    for parameter in parameters.values():
        parameter.grad = torch.ones(2, 2)
    optimizer.step()
    assert parameters["near"][0, 0].item() == pytest.approx(0.9)
    assert parameters["far"][0, 0].item() == pytest.approx(0.975)


def test_without_shares_groups_are_as_ever():
    named = [("w", torch.nn.Parameter(torch.ones(2, 2))), ("b", torch.nn.Parameter(torch.ones(2)))]
    groups = decay_groups(named, 0.1)
    assert [len(group["params"]) for group in groups] == [1, 1]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all("lr_scale" not in group for group in groups)
