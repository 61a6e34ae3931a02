"""The guard on made-up histories and, among the slow proofs, on real runs."""

import json
import math
import re

import pytest

import unfreeze
from unfreeze.config.field import keyword_settings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.errors import DivergedError
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.swav.auto_recipe import plan
from unfreeze.swav.collapse_detector import CollapseDetector
from unfreeze.swav.dataset_stats import DatasetStats

LN = math.log(64)
FINE = {"effective_rank_projected": 12.0, "prototypes_in_use": 40}


def first(guard, history):
    """The first verdict on (share of ln K, code entropy) for each step."""
    for step, (share, entropy) in enumerate(history, 1):
        verdict = guard.record(step, 1, share * LN, entropy)
        if verdict:
            return verdict
    return None


def test_trap_t1_a_loss_that_stands_at_ln_k_is_named_with_its_numbers():
    """swav#12 and many others: one user trained 163 epochs at 8.006."""
    verdict = first(CollapseDetector(64, start=20, window=50), [(1.0003, 0.997)] * 200)
    assert verdict.kind == "stuck" and verdict.step == 70
    assert "ln 64 = 4.159" in verdict.diagnosis and "99.70%" in verdict.diagnosis


def test_trap_t3_a_loss_that_fell_and_came_back_is_named():
    """swav#37: down to 7.2, then back to 8.006."""
    history = [(1.0, 0.99)] * 20 + [(0.9, 0.8)] * 300 + [(1.0, 0.998)] * 60
    guard = CollapseDetector(64, start=20, window=50)
    assert first(guard, history).step == 370


@pytest.mark.parametrize(
    ("history", "why"),
    [
        ([(1.0, 0.999)] * 69, "prototypes stand still or the rate warms up, then too few steps"),
        ([(1.002, 0.87)] * 300, "a slow start: the codes say something, the loss follows"),
        ([(0.96, 0.999)] * 300, "the loss has left ln K"),
        ([(0.99, 0.75)] * 300, "a temperature at which the loss cannot fall far"),
        ([(1.0, 0.999), (0.8, 0.6)] * 150, "noise"),
        ([(0.6, 0.4)] * 100 + [(1.05, 0.6)] * 30 + [(0.9, 0.5)] * 100, "a queue starts"),
    ],
)
def test_it_is_silent_on(history, why):
    assert first(CollapseDetector(64, start=20, window=50), history) is None, why


def test_worse_than_guessing_is_a_verdict():
    assert first(CollapseDetector(64, start=20, window=50), [(1.6, 0.9)] * 100).kind == "diverged"


def test_long_records_count_by_their_steps():
    guard = CollapseDetector(64, start=20, window=50)
    assert guard.record(50, 50, LN, 1.0) is None  # it began before the start
    assert guard.record(100, 50, LN, 1.0).step == 100


def test_features_that_are_one_point_are_a_verdict():
    guard = CollapseDetector(64, start=20, window=50)
    assert guard.check_features(70, FINE) is None
    assert guard.check_features(70, {**FINE, "effective_rank_projected": 1.2}).kind == "shrunk"
    assert (
        "1 of 64 prototypes" in guard.check_features(70, {**FINE, "prototypes_in_use": 1}).diagnosis
    )
    assert guard.check_features(69, {**FINE, "prototypes_in_use": 1}) is None


def test_frozen_prototypes_excuse_a_quarter_of_a_run_at_most():
    """swav#78: 250 of 400 epochs were frozen."""
    given = {"freeze_prototypes_niters": 5005, "epochs": 400, "batch_size": 64}
    made = plan(PretrainSettings(**given), DatasetStats(1300, 300, "cpu"))
    assert made.steps == 8000
    assert (
        CollapseDetector.of(made.settings, steps_per_epoch=made.steps_per_epoch, images=1300).start
        == 2000
    )


def test_its_state_travels():
    history = [(1.0003, 0.997)] * 60
    one, other = (
        CollapseDetector(64, start=20, window=50),
        CollapseDetector(64, start=20, window=50),
    )
    assert first(one, history) is None
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for step in range(61, 75):
        assert one.record(step, 1, LN, 0.999) == other.record(step, 1, LN, 0.999)


DIGITS = {
    "augment": "digits",
    "arch": "unfreeze/tiny",
    "device": "cpu",
    "workers": 0,
    "epochs": 7,
    "batch_size": 32,
    "limit": 500,
    "epsilon": 0.03,
    "min_scale_crops": (0.5,),
}
HEALTHY = {
    "as it is": {},
    "another seed": {"seed": 1},
    "larc": {"optimizer": "larc", "base_lr": 0.3},
    "sgd": {"optimizer": "sgd"},
    "many prototypes": {"nmb_prototypes": 300},
    "ten prototypes": {"nmb_prototypes": 10, "seed": 2},
    "a queue": {"queue_length": 96, "epoch_queue_starts": 2},
    "a long warm-up and freeze": {"warmup_epochs": 4, "freeze_prototypes_niters": 60},
    "four views": {
        "size_crops": (16, 12),
        "nmb_crops": (2, 2),
        "min_scale_crops": (0.5, 0.5),
        "max_scale_crops": (1.0, 1.0),
        "epochs": 5,
    },
    "temperature 1": {"temperature": 1.0},
    "another network": {"arch": "unfreeze/small", "image_size": 16},
    "other images": {"augment": "small", "image_size": 16, "epochs": 5},
}
COLLAPSED = {
    "epsilon 1: codes say nothing": {"epsilon": 1.0},
    "a rate a thousand times too high": {"base_lr": 1.0},
    "sgd at 20": {"optimizer": "sgd", "base_lr": 20.0},
    "epsilon 0.05 and views of a fifth": {"epsilon": 0.05, "min_scale_crops": (0.1,), "epochs": 12},
    "images that are all the same": {"epochs": 25},
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HEALTHY)
def test_it_is_silent_on_healthy_runs(how, tmp_path):
    found = unfreeze.pretrain("digits", out=str(tmp_path / "run"), **{**DIGITS, **HEALTHY[how]})
    assert found.loss < math.log(1000)


@pytest.fixture
def same(tmp_path, coloured):
    folder = coloured("same", {"": 100})
    one = next(folder.glob("*.png")).read_bytes()
    for path in folder.glob("*.png"):
        path.write_bytes(one)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("how", COLLAPSED)
def test_it_speaks_on_runs_made_to_collapse(how, tmp_path, same):
    data = same if "same" in how else "digits"
    changed = {"image_size": 16} if data == same else {}
    with pytest.raises(DivergedError) as error:
        unfreeze.pretrain(
            data, out=str(tmp_path / "run"), **{**DIGITS, **changed, **COLLAPSED[how]}
        )
    assert error.value.exit_code == 5
    words = set(re.findall(r"[a-z_]+", error.value.next_step))
    assert words & {*keyword_settings(PretrainSettings)} - {"out", "init"}  # a setting to change
    last = read_metrics(tmp_path / "run")[-1]["step"]
    import torch

    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert state["step"] == last == error.value.verdict.step
