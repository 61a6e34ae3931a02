"""`--time-limit`: a run ends before its time with 130, and goes on to the same weights."""

import time

import pytest
import torch

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.checkpoints.state import load_last
from unfreeze.cli.main import main
from unfreeze.commands.pretrain import run_pretrain
from unfreeze.config.layering import load_settings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.errors import Interrupted
from unfreeze.runtime import time_limit
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.training.trainer import Trainer

PRETRAIN = {"limit": 96, "batch_size": 16, "epochs": 3, "device": "cpu", "nmb_prototypes": 16}
STEPS = 18


@pytest.fixture
def slow(monkeypatch):
    """Every step of both trainings takes a fifth of a second at least, until this is emptied."""
    pauses = [0.2]
    step = Trainer.train_step

    def slower(trainer, batch):
        time.sleep(sum(pauses))
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", slower)
    return pauses


@pytest.mark.slow
def test_the_same_command_begins_goes_on_and_ends_like_the_straight_run(slow, tmp_path):
    out = tmp_path / "run"
    began, starts = time.monotonic(), []
    for _ in range(STEPS):
        started = time.monotonic()
        try:
            result = unfreeze.pretrain(
                "digits", out=str(out), resume="auto", time_limit="2s", **PRETRAIN
            )
            break
        except Interrupted as stop:
            starts.append(time.monotonic() - started)
            assert stop.exit_code == 130 and "Stopped by time_limit after step" in stop.sentence
            assert f"out={str(out)!r}, resume=True" in stop.next_step
    assert 2 <= len(starts) < STEPS  # some steps in each, however long the rest takes
    assert max(starts[1:]) < 8  # on a busy machine; the first start is a cold one
    assert result.steps == STEPS and time.monotonic() - began > 3.6
    steps = [line["step"] for line in read_metrics(out) if line["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    slow.clear()
    straight = unfreeze.pretrain("digits", out=str(tmp_path / "straight"), **PRETRAIN)
    (ours, _), (theirs, _) = load_model(result.run), load_model(straight.run)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_finetuning_ends_in_time_and_goes_on_to_the_same_weights(slow, tmp_path, coloured):
    data = coloured("pics", {"red": 40, "blue": 40})
    given = {"weights": "none", "arch": "unfreeze/tiny", "epochs": 4, "device": "cpu"}
    out = tmp_path / "run"
    started = time.monotonic()
    with pytest.raises(Interrupted, match=r"after step \d+ of \d+ \(\d of 4 epochs"):
        unfreeze.finetune(str(data), out=str(out), time_limit="2s", **given)
    assert time.monotonic() - started < 30  # on a busy machine; all steps alone take longer
    slow.clear()
    result = unfreeze.finetune(str(data), out=str(out), resume="auto")
    straight = unfreeze.finetune(str(data), out=str(tmp_path / "straight"), **given)
    (ours, _), (theirs, _) = load_model(result.run), load_model(straight.run)
    assert result.epochs == 4 and all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_the_command_ends_with_130_and_one_sentence(slow, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(time_limit, "process_start", time.monotonic)  # the tests' process is older
    words = ["pretrain", "digits", "--out", str(tmp_path / "run"), "--time-limit", "1s"]
    words += ["--limit", "96", "--batch-size", "16", "--epochs", "3", "--device", "cpu"]
    assert main(words) == 130
    said = capsys.readouterr().err.splitlines()
    assert "Stopped by --time-limit after step" in said[-2]
    assert said[-1].startswith("Resume with: unfreeze pretrain digits --out")
    assert "stopped by --time-limit" in (tmp_path / "run" / "log.txt").read_text()
    # the limit belongs to the call, not to the run
    assert "time_limit" not in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_what_is_no_time_is_refused_before_anything_is_read(verb, tmp_path, capsys):
    words = [verb, str(tmp_path / "nothing"), "--out", str(tmp_path / "run")]
    assert main([*words, "--time-limit", "soon"]) == 2
    assert "--time-limit soon is not a duration" in capsys.readouterr().err


def _late_in_one(rank, out):
    """Pretraining in one of the processes; the time is up in the second only."""
    settings = load_settings(
        PretrainSettings, {**PRETRAIN, "data": "digits", "out": out, "time_limit": "60s"}
    )
    try:
        run_pretrain(settings, QuietConsole(), began=time.monotonic() - 100 * rank)
    except Interrupted as stop:
        return stop.sentence
    return "it went on"


@pytest.mark.slow
def test_processes_leave_together_when_the_time_is_up_in_one(processes, tmp_path):
    one, other = processes(2, _late_in_one, str(tmp_path / "run"))
    assert other == "Stopped by --time-limit after step 1 of 18."
    assert one == "Stopped by a signal or the time limit in another process after step 1 of 18."
    assert load_last(tmp_path / "run/checkpoints")[0]["step"] == 1
