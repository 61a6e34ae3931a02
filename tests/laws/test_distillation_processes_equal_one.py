"""Distillation in two processes is that in one, in parts that in the whole, and resumes exactly."""

import pytest
import tests.laws.test_pretraining_processes_equal_one as laws
import torch
from torch import nn

from unfreeze.checkpoints.state import load_last
from unfreeze.errors import WeightsError
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.distributed import Distributed, init_distributed
from unfreeze.tasks.base import TeacherFeatures

UNUSED = ("queue_length", "epoch_queue_starts", "freeze_prototypes_niters", "nmb_prototypes")
GIVEN = {**dict.fromkeys(UNUSED), "method": "distill", "teacher": "any", "base_lr": 0.01}


def trainer(processes, folder, sha256="one", **changed):
    """A trainer in float64 whose teacher's features are in three parts."""
    made = laws.trainer(processes, folder, **{**GIVEN, **changed})
    features = torch.randn(64, 20, generator=torch.Generator().manual_seed(3))
    made.task.teacher = TeacherFeatures(features.split(30), sha256)
    return made


def trained(rank, folder, changed):
    made = trainer(init_distributed("cpu"), folder, **changed)
    made.fit(QuietConsole())
    return {name: tensor.numpy() for name, tensor in made.state.model.state_dict().items()}


def arrays(made):
    made.fit(QuietConsole())
    return {name: tensor.numpy() for name, tensor in made.state.model.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_process_equals_two_in_float64(processes, tmp_path, optimizer):
    one = arrays(trainer(Distributed(), tmp_path / "one", optimizer=optimizer))
    two, other = processes(2, trained, tmp_path / "two", {"optimizer": optimizer})
    assert laws.difference(two, other) == 0
    assert laws.difference(one, two) < (1e-7 if optimizer == "adamw" else 1e-9)


def test_other_targets_give_other_weights(tmp_path):
    """That the laws here can fail: the features matter, and which image they belong to."""
    one = trainer(Distributed(), tmp_path / "one")
    other = trainer(Distributed(), tmp_path / "other")
    parts = torch.cat(list(other.task.teacher.parts)).flip(0)
    other.task.teacher = TeacherFeatures([parts], "one")
    assert laws.difference(arrays(one), arrays(other)) > 1e-3


def test_a_batch_in_parts_equals_the_whole_but_for_batch_norm(tmp_path):
    def made(parts):
        built = trainer(Distributed(), tmp_path / str(parts), accumulate=parts)
        for module in built.state.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
                module.train = lambda mode=True, kept=module: kept
        return arrays(built)

    assert laws.difference(made(1), made(4)) < 1e-9


def half_way(folder, steps=5):
    half = trainer(Distributed(), folder)
    half.task.begin(half.loader, half.forward)
    for batch in half.loader.stream(0, steps):
        half.train_step(batch)
        half.state.step += 1
    half.save()
    return load_last(folder / "checkpoints")[0]


def test_a_resumed_run_is_the_straight_one_to_the_bit(tmp_path):
    straight = arrays(trainer(Distributed(), tmp_path / "straight"))
    state = half_way(tmp_path / "run")
    resumed = trainer(Distributed(), tmp_path / "run")
    resumed.load_state_dict(state)
    assert laws.difference(straight, arrays(resumed)) == 0


def test_the_axes_of_the_checkpoint_are_used(tmp_path):
    """Signs of principal axes depend on rounding: computed anew they could turn targets around."""
    state = half_way(tmp_path / "run")
    state["task"]["axes"] = -state["task"]["axes"]
    resumed = trainer(Distributed(), tmp_path / "run")
    resumed.load_state_dict(state)
    resumed.task.begin(resumed.loader, resumed.forward)
    usual = trainer(Distributed(), tmp_path / "usual")
    usual.task.begin(usual.loader, usual.forward)
    assert torch.equal(resumed.task.targets, -usual.task.targets)


def test_another_teacher_is_refused_on_resume(tmp_path):
    state = half_way(tmp_path / "run")
    resumed = trainer(Distributed(), tmp_path / "run", sha256="other")
    with pytest.raises(WeightsError, match="teacher any changed since the checkpoint"):
        resumed.load_state_dict(state)
