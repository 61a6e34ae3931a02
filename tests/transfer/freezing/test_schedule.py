"""`--unfreeze-at`: what stands still when, through the settings and through a whole run."""

import itertools

import pytest
import torch

from unfreeze.checkpoints.state import load_state
from unfreeze.commands.finetune import finetune
from unfreeze.errors import UsageError
from unfreeze.models.build import build
from unfreeze.models.head import replace_head
from unfreeze.transfer.freezing.schedule import freeze_schedule


@pytest.fixture(scope="module")
def resnet():
    model = build("resnet18")
    return model, replace_head(model, 3)


def at(resnet, freeze, spec, epochs=30):
    model, head = resnet
    return freeze_schedule(model, freeze, spec, head=head, epochs=epochs)


def test_parts_thaw_and_freeze_again_at_their_epochs(resnet):
    model, head = resnet
    names = {name for name, _ in model.named_parameters()}
    layer4 = {name for name in names if name.startswith("layer4.")}
    made = at(resnet, "all", "5:layer4, 10:all,20:-layer1,20:-conv1")
    assert made.at(0) == made.at(4) == names - set(head)
    assert made.at(5) == made.at(9) == names - set(head) - layer4
    assert made.at(10) == made.at(19) == frozenset()
    assert {n.split(".")[0] for n in made.at(20)} == {"layer1", "conv1"}
    assert made.always == frozenset()


def test_the_head_never_freezes_again(resnet):
    made = at(resnet, "none", "3:-all")
    assert made.at(2) == frozenset() and not made.at(3) & {"fc.weight", "fc.bias"}
    assert len(made.at(3)) == 60


def test_without_a_schedule_it_is_freeze_alone(resnet):
    assert at(resnet, "stage:1", None).steps == at(resnet, "stage:1", "").steps
    assert len(at(resnet, "stage:1", None).steps) == 1


@pytest.mark.parametrize(
    "freeze, spec, said",
    [
        ("all", "5:nothing", "no part 'nothing'"),
        ("all", "five:layer4", "Invalid entry in --unfreeze-at"),
        ("all", "0:layer4", "Invalid entry in --unfreeze-at"),
        ("all", "5layer4", "Invalid entry in --unfreeze-at"),
        ("all", "9:layer4,5:all", "must rise"),
        ("all", "30:layer4", "below --epochs 30"),
        ("none", "5:layer4", "has no effect"),
    ],
)
def test_what_cannot_be_meant_is_refused(resnet, freeze, spec, said):
    with pytest.raises(UsageError, match=said):
        at(resnet, freeze, spec)


def test_lp_ft_moves_the_head_first_and_everything_after(coloured, tmp_path, monkeypatch):
    """Linear probing, then fine-tuning: Kumar et al., arXiv 2202.10054."""
    from unfreeze.transfer.callbacks import Validation

    states, original = [], Validation.after_step

    def watching(self, state, logs):
        if state.ends_epoch:
            states.append({n: t.clone() for n, t in state.model.state_dict().items()})
        return original(self, state, logs)

    monkeypatch.setattr(Validation, "after_step", watching)
    data = coloured("d", {"red": 12, "blue": 12}, 32)
    given = {"arch": "unfreeze/small", "weights": "none", "epochs": 3, "device": "cpu"}
    result = finetune(
        str(data), out=str(tmp_path / "r"), freeze="all", unfreeze_at="2:all", **given
    )
    moved = [{n for n in a if not torch.equal(a[n], b[n])} for a, b in itertools.pairwise(states)]
    assert moved[0] and all(name.startswith("head") for name in moved[0])
    assert not all(name.startswith("head") for name in moved[1])
    assert result.parameters_frozen == 0 and result.frozen_unchanged is None
    # every parameter was in the optimizer from step 0: the groups of the checkpoint hold them all
    state = load_state(tmp_path / "r/checkpoints/last.ckpt")
    held = sum(len(group["params"]) for group in state["optimizer"]["param_groups"])
    assert held == sum(1 for _ in build("unfreeze/small").named_parameters())


@pytest.mark.slow
def test_what_never_thaws_is_hashed_and_what_thaws_is_not(coloured, tmp_path):
    data = coloured("d", {"red": 12, "blue": 12}, 32)
    given = {"arch": "resnet18", "weights": "none", "epochs": 2, "image_size": 32, "device": "cpu"}
    result = finetune(
        str(data), out=str(tmp_path / "r"), freeze="all", unfreeze_at="1:layer4", **given
    )
    assert result.frozen_unchanged is True and 0 < result.parameters_frozen < 11_000_000
    state = load_state(tmp_path / "r/checkpoints/last.ckpt")
    assert any(name.startswith("layer3.") for name in state["frozen"])
    assert not any(name.startswith(("layer4.", "fc.")) for name in state["frozen"])
