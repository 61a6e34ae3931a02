"""`--tune` remembered: a hit computes what was measured, and only the same question hits."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unfreeze.commands.cache import cache
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.runs.pretraining import autotune, tuning_cache
from unfreeze.runs.pretraining.tuning_cache import DAYS, load_tuning, store_tuning, tuning_key
from unfreeze.swav.throughput import (
    StepConfig,
    StepTime,
    TuningRound,
    TuningScope,
    choose_config,
)

CPU = torch.device("cpu")
SCOPE = TuningScope("cpu", ("bf16", "fp32"), 4)
USUAL = StepConfig("bf16", "channels_last", 4, 0)
FAST = StepConfig("fp32", "channels_last", 4, 0)
SETTINGS = PretrainSettings(arch="resnet18", batch_size=64, size_crops=(32,), nmb_crops=(2,))


def key(scope=SCOPE, **changed):
    return tuning_key(replace(SETTINGS, **changed), scope, CPU)


def measured(threads=4):
    usual, fast = (replace(way, threads=threads) for way in (USUAL, FAST))
    spent = {usual: StepTime(0.01, 0.04), fast: StepTime(0.01, 0.02)}
    return replace(choose_config([TuningRound("precision", 8, spent)], usual, SCOPE), seconds=0.7)


@pytest.fixture
def entry():
    """The path of a stored measurement."""
    assert store_tuning(key(), measured()) == ""
    return next(Path(os.environ["UNFREEZE_CACHE"]).rglob("*.json"))


def test_a_hit_is_what_was_measured(entry):
    stored, result = load_tuning(key()), measured()
    assert stored.way == result.way == FAST and stored.measured == result.measured
    today = time.strftime("%Y-%m-%d", time.gmtime(json.loads(entry.read_text())["seconds"]))
    assert stored.record == {**result.record("cpu"), "cached": True, "measured_on": today}


@pytest.mark.parametrize(
    "changed",
    [
        {"arch": "resnet50"},
        {"stem": "small"},
        {"size_crops": (48,)},
        {"nmb_crops": (4,)},
        {"batch_size": 32},
        {"accumulate": 2},
        {"method": "deepcluster-v2"},
        {"precision": "fp32"},
        {"workers": 0},
        {"nmb_prototypes": 3_000},
    ],
)
def test_another_network_batch_or_given_setting_is_measured_anew(entry, changed):
    assert load_tuning(key(**changed)) is None and load_tuning(key()) is not None


def test_what_no_step_depends_on_is_not_in_the_key(entry):
    same = {"seed": 3, "epochs": 7, "base_lr": 0.1, "out": "elsewhere", "tune": "again"}
    assert load_tuning(key(**same)) is not None


def test_another_machine_is_measured_anew(entry, monkeypatch):
    for scope in (
        replace(SCOPE, processors=2),
        replace(SCOPE, precisions=("fp32",)),
        replace(SCOPE, given={"threads": "set by OMP_NUM_THREADS"}),
    ):
        assert load_tuning(key(scope)) is None
    for name, value in {
        "processor_name": lambda: "another",
        "processor_capabilities": lambda: ["amx_bf16"],
        "cpu_quota": lambda: "150000 100000",
        "__version__": "9.9.9",
        "threads_spin": lambda: "perhaps",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(tuning_cache, name, value)
            assert load_tuning(key()) is None, name
    assert load_tuning(key()) is not None


def test_it_is_forgotten_after_thirty_days_and_if_it_is_from_the_future(entry, monkeypatch):
    now = time.time()
    for days, hit in ((DAYS - 0.1, True), (DAYS + 0.1, False), (-1, False)):
        monkeypatch.setattr(tuning_cache.time, "time", lambda days=days: now + days * 86_400)
        assert (load_tuning(key()) is not None) == hit


def _without(name):
    return lambda stored: {k: v for k, v in stored.items() if k != name}


def _record(**changed):
    return lambda stored: {**stored, "record": {**stored["record"], **changed}}


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: [],
        lambda stored: {**stored, "record": "fp32"},
        lambda stored: {**stored, "seconds": "yesterday"},
        lambda stored: {**stored, "measured": [8]},
        lambda stored: {**stored, "measured": [float("inf"), 1, 1]},
        lambda stored: {**stored, "key": {**stored["key"], "processors": 3}},
        *(_without(name) for name in ("key", "record", "seconds", "measured")),
        _record(precision="fp12"),
        _record(precision="auto"),
        _record(precision=["bf16"]),
        _record(layout="round"),
        _record(threads=0),
        _record(threads=10**6),
        _record(threads="2"),
        _record(workers=-1),
        _record(workers=None),
        _record(reasons={"threads": 3}),
        _record(steps=None),
        _record(probe_seconds=None),
    ],
)
def test_a_damaged_entry_is_no_entry(entry, damage):
    entry.write_text(json.dumps(damage(json.loads(entry.read_text()))))
    assert load_tuning(key()) is None
    assert store_tuning(key(), measured()) == "" and load_tuning(key()).way == FAST


def test_a_torn_file_is_no_entry(entry):
    whole = entry.read_bytes()
    for part in (b"", whole[: len(whole) // 2], b"\xff\xfe" + whole):
        entry.write_bytes(part)
        assert load_tuning(key()) is None


def test_old_entries_are_removed_and_only_so_many_stay(entry, monkeypatch):
    monkeypatch.setattr(tuning_cache, "MOST", 3)
    for batch in range(1, 6):
        store_tuning(key(batch_size=batch), measured())
    assert len(list(entry.parent.iterdir())) == 3
    for path in entry.parent.iterdir():
        os.utime(path, (0, 0))
    store_tuning(key(), measured())
    assert list(entry.parent.iterdir()) == [entry]


def test_the_cache_command_lists_and_removes_it(entry):
    listed = {kind.name: kind for kind in cache().entries}["tuning"]
    assert (listed.files, listed.bytes) == (1, entry.stat().st_size) and not cache().foreign
    assert cache(clear=True).bytes == 0 and not entry.exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path / "file"))
    assert store_tuning(key(), measured()) and load_tuning(key()) is None


def test_the_plan_says_when_it_was_measured():
    s = replace(SETTINGS, device="cpu")
    assert "within 1.5 s" in autotune.plan_line(s, CPU, 1)["tune"]
    store_tuning(tuning_key(s, autotune.scope_of(s, CPU), CPU), measured(threads=1))
    line = autotune.plan_line(s, CPU, 1)["tune"]
    assert "were measured on this machine on 20" in line and "--tune again" in line
    assert "within 1.5 s" in autotune.plan_line(replace(s, tune="again"), CPU, 1)["tune"]
    assert autotune.plan_line(replace(s, tune="off"), CPU, 1) == {}
    assert "several processes" in autotune.plan_line(s, CPU, 2)["tune"]
