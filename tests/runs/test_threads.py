"""Threads of a run: as many as its batches are worth, and when it is resumed as many as it had."""

import tomllib

import pytest

import unfreeze
from unfreeze.commands import pretrain
from unfreeze.errors import Interrupted
from unfreeze.runs.finetuning import train
from unfreeze.runs.pretraining import autotune
from unfreeze.runtime import threads
from unfreeze.runtime.threads import ThreadCount

SMALL = {"arch": "unfreeze/tiny", "image_size": 16, "batch_size": 8, "device": "cpu"}
PRETRAIN = {**SMALL, "nmb_prototypes": 8, "epochs": 2, "watch_every": 0}
FINETUNE = {**SMALL, "weights": "none", "epochs": 2, "cache": "off"}


@pytest.fixture
def four(monkeypatch):
    """A process with four free threads; the list gets every number that is set."""
    taken = []
    monkeypatch.setattr(ThreadCount, "now", lambda: ThreadCount(4))
    monkeypatch.setattr(threads, "processors", lambda: 4)
    monkeypatch.setattr(autotune, "threads_set_by", lambda: "")
    for module in (train, autotune, pretrain):
        monkeypatch.setattr(module, "set_threads", taken.append)
    return taken


@pytest.fixture
def worthwhile(monkeypatch):
    """From now on every batch is worth all threads."""
    return lambda: (
        monkeypatch.setattr(threads, "FLOPS_PER_SPINNING_THREAD", 1.0)
        or monkeypatch.setattr(threads, "FLOPS_PER_THREAD", 1.0)
    )


def reasons(run):
    return tomllib.loads((run / "config.toml").read_text())["reasons"]["threads"]


def test_finetuning_a_small_network_takes_one_thread(four, worthwhile, coloured, tmp_path):
    data = str(coloured("pics", {"red": 12, "blue": 12}))
    said = unfreeze.finetune(data, dry_run=True, **FINETUNE).reasons["threads"]
    assert said.startswith("1: one per") and four == [1]
    with pytest.raises(Interrupted):
        unfreeze.finetune(data, out=str(tmp_path / "run"), time_limit="0.01s", **FINETUNE)
    assert four == [1, 1] and reasons(tmp_path / "run") == said
    worthwhile()
    unfreeze.finetune(data, out=str(tmp_path / "run"), resume="yes")
    assert four[2:] == [1] and reasons(tmp_path / "run") == "1: as the run began"
    unfreeze.finetune(data, dry_run=True, **FINETUNE)
    assert four[3:] == [4]


def test_pretraining_a_small_network_takes_one_thread(four, worthwhile, coloured, tmp_path):
    data = str(coloured("pics", {"red": 12, "blue": 12}))
    with pytest.raises(Interrupted):
        unfreeze.pretrain(data, out=str(tmp_path / "run"), time_limit="0.01s", **PRETRAIN)
    assert set(four) == {1} and reasons(tmp_path / "run").startswith("1: ")
    worthwhile()
    four.clear()
    unfreeze.pretrain(data, out=str(tmp_path / "run"), resume="yes")
    assert four == [1]
    unfreeze.pretrain(data, dry_run=True, **PRETRAIN)
    assert four == [1, 4]
