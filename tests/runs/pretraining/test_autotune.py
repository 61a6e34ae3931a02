"""`--tune`: what the probe leaves alone, what a run keeps of it, and what it never touches."""

import math
import os
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.cli.main import main
from unfreeze.commands.pretrain import run_pretrain
from unfreeze.config.layering import load_settings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.errors import Interrupted, ResourceError, UsageError
from unfreeze.runs.pretraining import autotune, tuning_cache
from unfreeze.runtime.console import QuietConsole
from unfreeze.swav.throughput import (
    RESERVE,
    SECONDS,
    StepConfig,
    StepTime,
    TuningResult,
    TuningRound,
    TuningScope,
    choose_config,
    probe_ways,
)
from unfreeze.training.trainer import Trainer

GIVEN = {
    "data": "digits",
    "limit": 128,
    "epochs": 2,
    "batch_size": 32,
    "nmb_prototypes": 16,
    "augment": "digits",
    "device": "cpu",
    "watch_every": 0,
}


# the same for the command line
COMMAND = ["pretrain", "digits", "--limit", "128", "--epochs", "2", "--batch-size", "32"]
COMMAND += ["--nmb-prototypes", "16", "--augment", "digits", "--device", "cpu", "--watch-every"]
COMMAND += ["0"]


def run(out, **changed):
    settings = load_settings(PretrainSettings, {**GIVEN, "out": str(out), **changed})
    return run_pretrain(settings, QuietConsole())


def weights(folder):
    return load_model(folder)[0]


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def config(folder):
    return tomllib.loads((folder / "config.toml").read_text())


@pytest.fixture
def decided(monkeypatch):
    """`decided(precision="fp32", ...)`: what the probe says from now on, after real steps."""

    def to(**changed):
        def instead(usual, scope, measure, *, rows, steps):
            for way in (usual, StepConfig("fp32", "contiguous", 1, 0)):
                assert measure(way, 8, 60.0).whole
            way = StepConfig(**{**vars(usual), **changed})
            tried = TuningRound("precision", 8, {way: StepTime(0.01, 0.02)})
            reasons = {k: f"{v}: decided" for k, v in vars(way).items()}
            return TuningResult(way, reasons, (tried,), 0.5)

        monkeypatch.setattr(autotune, "probe_ways", instead)

    return to


@pytest.fixture
def forbidden(monkeypatch):
    def never(*_, **__):
        raise AssertionError("measured")

    return lambda: monkeypatch.setattr(autotune, "probe_ways", never)


@pytest.fixture(scope="module")
def untuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untuned") / "run"
    run(folder, tune="off")
    return folder


def test_the_probe_changes_neither_random_numbers_nor_weights(untuned, tmp_path, decided):
    decided()  # the usual way, after it was tried for real
    run(tmp_path / "run", tune="auto")
    assert same(weights(untuned), weights(tmp_path / "run"))


def test_off_measures_nothing_and_writes_no_choice(untuned, tmp_path, forbidden):
    forbidden()
    run(tmp_path / "run", tune="off")
    assert same(weights(untuned), weights(tmp_path / "run"))
    assert "tuned" not in config(tmp_path / "run") and config(tmp_path / "run")["tune"] == "off"


def test_a_second_run_measures_nothing_and_computes_the_same(untuned, tmp_path, decided, capsys):
    usual = config(untuned)["facts"]["precision"]
    decided(precision="fp32" if usual == "bf16" else "bf16", layout="contiguous")
    run(tmp_path / "first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "probe_ways", None)  # calling it would end the run
        answer = main([*COMMAND, "--out", str(tmp_path / "second")])
    said = capsys.readouterr()
    assert answer == 0 and "Settings measured on this machine on 20" in said.out + said.err
    assert same(weights(tmp_path / "first"), weights(tmp_path / "second"))
    first, second = (config(tmp_path / name) for name in ("first", "second"))
    told = second["tuned"]
    assert told.pop("cached") is True and told.pop("measured_on").startswith("20")
    assert told == first["tuned"] and first["reasons"]["layout"] == "contiguous: decided"
    assert second["reasons"]["layout"] == "contiguous: decided"
    assert second["facts"]["precision"] == first["facts"]["precision"] != usual
    assert "were measured on this machine on" in second["reasons"]["tune"]
    decided(precision=usual)
    run(tmp_path / "again", tune="again", epochs=1)
    assert "cached" not in config(tmp_path / "again")["tuned"]
    assert config(tmp_path / "again")["facts"]["precision"] == usual


@pytest.mark.slow
def test_a_run_too_short_to_measure_leaves_no_entry_and_a_full_disk_ends_no_run(
    tmp_path, monkeypatch, decided, capsys
):
    run(tmp_path / "short", epochs=1)
    assert not list(Path(os.environ["UNFREEZE_CACHE"]).rglob("tuning/*"))
    decided()
    with monkeypatch.context() as patch:
        patch.setattr(tuning_cache.atomic, "write_json", full_disk)
        assert main([*COMMAND, "--epochs", "1", "--out", str(tmp_path / "full")]) == 0
    told = capsys.readouterr().err
    assert "could not be stored for later runs" in told and "The disk is full" in told


def full_disk(path, value):
    raise ResourceError("The disk is full", "Free some space.")


@pytest.mark.slow
def test_a_resumed_run_reads_the_choice_and_equals_the_straight_one(tmp_path, decided, forbidden):
    chosen = {"precision": "fp32", "layout": "contiguous", "workers": 1}
    decided(**chosen)
    run(tmp_path / "straight")
    stopped = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        run(stopped, time_limit="0.2s")
    forbidden()
    run(stopped, resume="yes")
    assert same(weights(tmp_path / "straight"), weights(stopped))
    found = config(stopped)
    assert {knob: found["tuned"][knob] for knob in chosen} == chosen
    assert found["facts"]["precision"] == "fp32"
    assert found["reasons"]["layout"] == "contiguous: decided"


def test_without_the_stored_choice_the_resumed_run_would_be_another(tmp_path, decided, untuned):
    decided(precision="fp32" if config(untuned)["facts"]["precision"] == "bf16" else "bf16")
    stopped = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        run(stopped, time_limit="0.2s")
    text = (stopped / "config.toml").read_text()
    (stopped / "config.toml").write_text(text[: text.index("[tuned]")])
    run(stopped, resume="yes")  # and it is not measured then
    assert config(stopped)["facts"]["precision"] == config(untuned)["facts"]["precision"]


def test_threads_are_set_for_the_run_and_given_back(tmp_path, decided, monkeypatch):
    before, seen = torch.get_num_threads(), []

    def fit(self, console, on_epoch=None):  # a whole run with two threads would take minutes
        seen.append(torch.get_num_threads())
        raise Interrupted("enough")

    monkeypatch.setattr(Trainer, "fit", fit)
    decided(threads=before + 1)
    with pytest.raises(Interrupted):
        run(tmp_path / "run")
    assert seen == [before + 1] == [config(tmp_path / "run")["facts"]["threads"]]
    assert torch.get_num_threads() == before


def test_values_of_the_user_are_given():
    free = autotune.scope_of(PretrainSettings(), torch.device("cpu"))
    assert set(free.given) <= {"threads"}
    asked = autotune.scope_of(PretrainSettings(workers=0, precision="fp32"), torch.device("cpu"))
    assert asked.given["workers"] == asked.given["precision"] == "given"


def test_threads_count_as_given_where_somebody_set_them(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(autotune, "threads_set_by", lambda: "OMP_NUM_THREADS")
    given = autotune.scope_of(PretrainSettings(), device).given
    assert given["threads"] == "set by OMP_NUM_THREADS"
    monkeypatch.setattr(autotune, "threads_set_by", lambda: "")
    assert "threads" not in autotune.scope_of(PretrainSettings(), device).given


def test_what_is_given_on_resume_wins_over_the_record():
    record = {"device": "cpu", "precision": "fp32", "layout": "contiguous", "threads": 2}
    record |= {"workers": 1}
    usual = StepConfig("bf16", "channels_last", 1, 3)
    given = TuningScope("cpu", ("bf16",), 8, {"workers": "asked for"})
    assert autotune._recorded_way(record, usual, given, 1) == StepConfig("fp32", "contiguous", 2, 3)
    # more processes share the processors; another device is another choice
    assert autotune._recorded_way(record, usual, given, 4) == StepConfig("fp32", "contiguous", 1, 3)
    assert autotune._recorded_way({**record, "device": "cuda"}, usual, given, 1) == usual


class Slow(torch.nn.Module):
    """A layer that takes a second on a made-up clock, forward and backward."""

    now = 0.0

    def forward(self, x):
        Slow.now += 1.0
        return x * 1.0


@pytest.fixture
def measuring(monkeypatch):
    """`measuring(look, ...)`: look(usual, scope, measure, known) stands where the probe does."""

    def instead(look, **changed):
        def by(usual, scope, measure, **known):
            for name, value in changed.items():
                setattr(measure, name, value)
            look(usual, scope, measure, known)
            return choose_config([], usual, scope)

        monkeypatch.setattr(autotune, "probe_ways", by)

    return instead


def test_a_step_is_cut_off_between_layers(untuned, tmp_path, measuring):
    """A network of 40 slow layers: a step ends within a layer of its limit, the probe in time."""

    def look(usual, scope, measure, known):
        make = measure.make

        def slow(way):
            trainer = make(way)
            layers = (Slow() for _ in range(40))
            trainer.state.model.backbone = torch.nn.Sequential(
                *layers, trainer.state.model.backbone
            )
            return trainer

        measure.make, began = slow, Slow.now
        cut = measure(usual, 4, 3.0)
        assert not cut.whole and 3.0 < Slow.now - began <= 4.0
        found = probe_ways(usual, scope, measure, **known, clock=measure.clock)
        assert found.way == usual and found.seconds <= SECONDS - RESERVE + 1.0

    measuring(look, clock=lambda: Slow.now)
    run(tmp_path / "run")
    assert Slow.now > 3.0 and same(weights(untuned), weights(tmp_path / "run"))


def test_a_way_that_does_not_fit_ends_no_run(tmp_path, measuring, monkeypatch):
    def look(usual, scope, measure, known):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", full)
            assert math.isinf(measure(usual, 8, 60.0).total)
        assert measure(usual, 8, 60.0).whole

    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    measuring(look)
    run(tmp_path / "run", epochs=1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch's, on one processor
def test_in_the_long_run_workers_are_as_fast_as_they_cut(tmp_path, measuring):
    def look(usual, scope, measure, known):
        measure(usual, 8, 60.0)
        measure._cut[8] = 10.0  # seconds, in the main process
        beside = measure(replace(usual, workers=2), 8, 60.0)
        assert beside.total == pytest.approx(5.0)

    measuring(look)
    run(tmp_path / "run")


def test_a_real_probe_is_quick_and_leaves_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("unfreeze.swav.throughput.SHARE", 1e9)  # a run worth measuring
    run(tmp_path / "run", epochs=1)
    kept = config(tmp_path / "run")["tuned"]
    assert kept["probe_seconds"] <= SECONDS + 0.5 and set(kept["reasons"]) >= {
        "precision",
        "layout",
    }
    assert kept["steps"] and all(" ms" in figure for figure in kept["steps"].values())


def test_a_plan_says_that_it_will_be_measured():
    planned = unfreeze.pretrain("digits", device="cpu", dry_run=True, limit=128)
    assert "measured before the first step" in planned.reasons["tune"]
    off = unfreeze.pretrain("digits", device="cpu", dry_run=True, limit=128, tune="off")
    assert "tune" not in off.reasons
    with pytest.raises(UsageError, match="auto, again, off"):
        unfreeze.pretrain("digits", dry_run=True, tune="on")


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "deepcluster-v2"},
        {"queue_length": 32, "epoch_queue_starts": 0},
        {"accumulate": 2},
    ],
)
def test_every_kind_of_run_can_be_measured_and_stays_the_same(tmp_path, decided, changed):
    decided()
    run(tmp_path / "run", epochs=1, **changed)
    run(tmp_path / "off", epochs=1, tune="off", **changed)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "off"))


def test_a_run_that_is_stopped_while_it_measures_goes_on_as_it_was_asked(tmp_path, monkeypatch):
    def stopped(*_):
        raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(autotune, "_measure", stopped)
        with pytest.raises(Interrupted):
            run(tmp_path, tune="auto")
    done = unfreeze.pretrain("digits", out=str(tmp_path), resume=True)
    assert (done.images, done.epochs) == (128, 2)
    assert config(tmp_path)["tuned"]
