"""Discriminative learning rates: each stage's share, and what the optimizer then does."""

import pytest
import torch

import unfreeze
from unfreeze.errors import UsageError
from unfreeze.models.build import build
from unfreeze.models.head import replace_head
from unfreeze.models.stages import stages
from unfreeze.optim.optimizer import decay_groups, set_lr
from unfreeze.transfer.plan import layer_lr_scales


def test_shares_fall_with_the_distance_from_the_head():
    model = build("resnet18")
    head = replace_head(model, 3)
    scales = layer_lr_scales(model, 0.5, head)
    assert set(scales) == {name for name, _ in model.named_parameters()}
    assert scales["fc.weight"] == 1 and scales["layer4.0.conv1.weight"] == 0.5
    assert scales["layer1.0.conv1.weight"] == 0.5**4
    assert scales["conv1.weight"] == 0.5 ** len(stages(model))
    assert layer_lr_scales(model, 1.0, head) == {}


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


def test_a_head_has_a_rate_of_its_own():
    model = build("resnet18")
    head = replace_head(model, 3)
    assert layer_lr_scales(model, 1.0, head, head_share=250.0) == dict.fromkeys(head, 250.0)
    scales = layer_lr_scales(model, 0.5, head, head_share=3.0)
    assert scales["fc.weight"] == 3 and scales["layer4.0.conv1.weight"] == 0.5


def test_its_rate_is_the_one_that_was_asked_for(tmp_path):
    """With SGD and no momentum, the head of one step moved by its own rate times its gradient."""

    def heads(**rates):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        unfreeze.finetune(
            "digits",
            out=str(out),
            weights="none",
            arch="unfreeze/tiny",
            limit=32,
            batch_size=32,
            epochs=1,
            momentum=0,
            weight_decay=0,
            schedule="constant",
            augment="none",
            device="cpu",
            precision="fp32",
            workers=0,
            val=0,
            **rates,
        )
        tensors = unfreeze.load(str(out)).network.state_dict()
        return tensors["head.weight"], next(t for name, t in tensors.items() if "conv" in name)

    still = heads(lr=1e-9)
    usual, own = heads(lr=1e-3), heads(lr=1e-3, head_lr=5e-3)
    moved = [one[0] - still[0] for one in (usual, own)]
    assert torch.allclose(moved[1], 5 * moved[0], rtol=0.02, atol=1e-7)
    assert torch.equal(usual[1], own[1])  # the rest does not
    with pytest.raises(UsageError, match="head_lr needs lr above 0"):
        heads(lr=0.0, head_lr=1e-3)
