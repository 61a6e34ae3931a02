"""Head and prototypes of every tool's SwAV file, taken over where they fit and only there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unfreeze.checkpoints.model_file import ModelCard, save_model
from unfreeze.checkpoints.state import save_state
from unfreeze.swav.head_weights import (
    count_near_identical,
    head_weights_of_run,
    load_swav_head,
    prototypes_in,
)
from unfreeze.swav.model import SwAV


def swav(seed, prototypes=6, hidden=8, feat_dim=4, width=5):
    torch.manual_seed(seed)
    model = SwAV(nn.Identity(), width, hidden=hidden, feat_dim=feat_dim, prototypes=prototypes)
    for name, tensor in model.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 2.0)
    return model


def head_of(model):
    return dict(model.state_dict())


def renamed(state, rules):
    made = {}
    for name, tensor in state.items():
        for old, new in rules.items():
            if name.startswith(old):
                made[new + name[len(old) :]] = tensor
    return made


WAYS = {
    "reference": {
        "projection_head.": "module.projection_head.",
        "prototypes.": "module.prototypes.",
    },
    "ours": {"projection_head.": "projection_head.", "prototypes.": "prototypes."},
    "vissl": {
        "projection_head.": "classy_state_dict.base_model.model.heads.0.projection_head.",
        "prototypes.": "classy_state_dict.base_model.model.heads.0.prototypes0.",
    },
    "solo-learn": {"projection_head.": "projector.", "prototypes.": "prototypes."},
    "lightly": {
        "projection_head.": "projection_head.layers.",
        "prototypes.": "prototypes.heads.0.",
    },
}


def same_function(mine, theirs):
    """Evaluated alike: features and the directions of the prototypes."""
    h = torch.randn(7, 5)
    z, w = mine.eval().projection_head(h), theirs.eval().projection_head(h)
    return torch.allclose(z, w, atol=1e-6) and torch.allclose(
        F.normalize(mine.prototypes.weight), F.normalize(theirs.prototypes.weight), atol=1e-6
    )


@pytest.mark.parametrize("way", WAYS)
def test_t13_head_and_prototypes_of_every_tool_are_taken_over(way):
    mine, theirs = swav(0), swav(1)
    state = renamed(head_of(theirs), WAYS[way])
    if way == "solo-learn":  # weight norm: length and direction
        weight = state.pop("prototypes.weight")
        state["prototypes.weight_g"] = weight.norm(dim=1, keepdim=True)
        state["prototypes.weight_v"] = 3 * weight
        state["classifier.weight"], state["queue"] = torch.zeros(10, 5), torch.zeros(2, 4)
    if way == "lightly":  # no bias before a batch norm; prototypes with one
        with torch.no_grad():
            theirs.projection_head[0].bias.zero_()
        del state["projection_head.layers.0.bias"]
        state["prototypes.heads.0.bias"] = torch.ones(6)
    found = load_swav_head(mine, state)
    assert found.taken == ("projection head", "prototypes")
    assert same_function(mine, theirs)
    assert ("bias is not used" in found.said[0]) == (way == "lightly")


def test_the_newer_writing_of_weight_norm_is_known():
    mine, theirs = swav(0), swav(1)
    state = renamed(head_of(theirs), WAYS["ours"])
    del state["prototypes.weight"]
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6, bias=False), dim=0)
    state |= {f"prototypes.{name}": tensor for name, tensor in layer.state_dict().items()}
    assert load_swav_head(mine, state).taken == ("projection head", "prototypes")
    assert torch.allclose(mine.prototypes.weight, F.normalize(layer.weight), atol=1e-6)


def test_other_numbers_of_prototypes_are_left_out_with_the_way_to_take_them():
    mine, theirs = swav(0), swav(1, prototypes=30)
    before = mine.prototypes.weight.clone()
    found = load_swav_head(mine, renamed(head_of(theirs), WAYS["reference"]))
    assert found.taken == ("projection head",)
    assert "30 in the weights, 6 here (--nmb-prototypes 30 loads them)" in found.said[1]
    assert torch.equal(mine.prototypes.weight, before)
    assert torch.equal(mine.projection_head[3].weight, theirs.projection_head[3].weight)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"hidden": 12}, "it is 5-12-4 with batch norm in the weights, 5-8-4 with batch norm here"),
        ({"feat_dim": 3}, "it is 5-8-3 with batch norm"),
        ({"width": 7}, "it is 7-8-4"),
        ({"hidden": 0}, "it is"),
    ],
)
def test_another_head_is_left_out_whole_and_its_prototypes_with_it(other, says):
    mine, theirs = swav(0), swav(1, **other)
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    found = load_swav_head(mine, renamed(head_of(theirs), WAYS["ours"]))
    assert found.taken == () and says in found.said[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())


def test_a_head_without_batch_norm_is_another_head():
    # the published network of five times the width has such a one
    theirs = {
        "module.projection_head.0.weight": torch.randn(8, 5),
        "module.projection_head.0.bias": torch.randn(8),
        "module.projection_head.2.weight": torch.randn(4, 8),
        "module.projection_head.2.bias": torch.randn(4),
        "module.prototypes.weight": torch.randn(6, 4),
    }
    found = load_swav_head(swav(0), theirs)
    assert found.taken == () and "5-8-4 without batch norm" in found.said[0]


def test_a_projector_without_prototypes_is_another_methods():
    state = renamed(head_of(swav(1)), {"projection_head.": "projector."})
    found = load_swav_head(swav(0), state)
    assert found.taken == () and "No SwAV head" in found.said[0]


def test_t18_identical_prototypes_are_counted():
    torch.manual_seed(0)
    prototypes = torch.randn(2500, 64)
    assert count_near_identical(prototypes) == 0
    prototypes[7] = 3 * prototypes[2000]  # the same direction, further out
    prototypes[2400] = prototypes[2000] + 1e-3 * torch.randn(64)
    prototypes[11] = -prototypes[12]
    assert count_near_identical(prototypes) == 3
    # all three find each other whatever the size of a block of rows
    assert (
        count_near_identical(prototypes, rows=7) == count_near_identical(prototypes, rows=9999) == 3
    )


def test_prototypes_are_known_by_name_and_shape():
    names = [
        *("module.prototypes.weight", "heads.0.prototypes0.weight", "prototypes.heads.0.weight"),
        *("prototypes0.weight", "prototypes1.weight"),
    ]
    others = {"prototypes.bias": torch.zeros(3), "my_prototypes.x.weight": torch.zeros(3, 2)}
    tensors = {name: torch.zeros(3, 2) for name in names} | others
    assert prototypes_in(tensors) == names


def written(folder, *, steps=9, step=9):
    model = swav(1)
    card = ModelCard("backbone", "unfreeze/tiny", provenance={"steps": steps})
    save_model(folder / "model", {"stem.weight": torch.zeros(2)}, card)
    state = {f"backbone.{n}": t for n, t in {"stem.weight": torch.zeros(2)}.items()}
    save_state(
        folder / "checkpoints" / "last.ckpt",
        {"kind": "pretrain", "step": step, "model": state | head_of(model)},
    )
    return model


def test_the_head_of_a_run_stands_in_its_last_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    theirs, mine = written(tmp_path), swav(0)
    rest, why = head_weights_of_run(str(tmp_path))
    assert why == "" and load_swav_head(mine, rest).taken == ("projection head", "prototypes")
    assert same_function(mine, theirs)


def test_a_checkpoint_of_another_step_is_not_the_models(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    written(tmp_path, step=12)
    rest, why = head_weights_of_run(str(tmp_path))
    assert not rest and "is of step 12, the model is of step 9" in why


def test_a_model_folder_alone_holds_no_head(tmp_path):
    save_model(tmp_path, {"stem.weight": torch.zeros(2)}, ModelCard("backbone", "unfreeze/tiny"))
    assert head_weights_of_run(str(tmp_path)) == ({}, f"{tmp_path} holds only the backbone")


@pytest.mark.parametrize("name", ["prototypes.weight", "projection_head.0.weight"])
def test_a_head_that_is_not_finite_is_left_out_and_named(name):
    model, state = swav(1), head_of(swav(2))
    before = {n: t.clone() for n, t in head_of(model).items()}
    state[name] = state[name].clone()
    state[name].view(-1)[0] = float("nan")
    found = load_swav_head(model, state | {"mask": torch.tensor(float("-inf"))})
    assert found.taken == () and f"{name} is not finite" in found.said[0]
    assert all(torch.equal(before[n], t) for n, t in head_of(model).items())
