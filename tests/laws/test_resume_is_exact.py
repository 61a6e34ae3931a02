"""A pretraining run that was stopped and resumed equals the straight one, bit for bit."""

import contextlib
import inspect
import signal

import pytest
import torch

from unfreeze.checkpoints.model_file import load_model
from unfreeze.commands.pretrain import run_pretrain
from unfreeze.config.layering import load_settings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.loading.loader import Loader
from unfreeze.errors import DataError, Interrupted, UsageError, WeightsError
from unfreeze.runtime.console import QuietConsole
from unfreeze.training.trainer import Trainer

GIVEN = {
    "data": "digits",
    "limit": 300,
    "epochs": 3,
    "batch_size": 32,
    "queue_length": 64,
    "epoch_queue_starts": 1,
    "nmb_prototypes": 24,
    "augment": "digits",
    "device": "cpu",
}


class StopsAfter(QuietConsole):
    """Sends a signal once `steps` steps were made."""

    def __init__(self, steps, number=signal.SIGTERM):
        self.left, self.number = steps, number

    @contextlib.contextmanager
    def progress(self, label, total, done=0):
        def advance(steps, text=""):
            self.left -= steps
            if label == "pretrain" and self.left == 0:
                signal.raise_signal(self.number)

        yield advance


class StopsPretraining(StopsAfter):
    @contextlib.contextmanager
    def progress(self, label, total, done=0):
        if label == "pretrain":
            with super().progress(label, total, done) as advance:
                yield advance
        else:
            yield lambda steps, text="": None


def run(out, console=None, **changed):
    settings = load_settings(PretrainSettings, {**GIVEN, "out": str(out), **changed})
    return run_pretrain(settings, console or QuietConsole())


def everything(folder):
    tensors, _ = load_model(folder)
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    flat = {
        f"optimizer.{i}.{k}": v
        for i, slot in state["optimizer"]["state"].items()
        for k, v in slot.items()
        if torch.is_tensor(v)
    }
    return (
        tensors
        | {f"model.{k}": v for k, v in state["model"].items()}
        | flat
        | {"queue": state["task"]["queue"]}
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    run(folder)
    return everything(folder)


@pytest.mark.parametrize("step", [4, 13, pytest.param(23, marks=pytest.mark.slow)])
def test_stopped_at_any_step_and_resumed_is_the_straight_run(straight, tmp_path, step):
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"after step {step} of 27") as stopped:
        run(out, StopsPretraining(step))
    assert stopped.value.exit_code == 130
    result = run(out, resume="yes")
    assert result.steps == 27
    resumed = everything(out)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    from unfreeze.runtime.run_folder import read_metrics

    assert [r["step"] for r in read_metrics(out) if r["split"] == "train"] == list(range(1, 28))


def test_workers_do_not_change_the_run(straight, tmp_path):
    run(tmp_path / "run", workers=2)
    again = everything(tmp_path / "run")
    assert all(torch.equal(straight[name], again[name]) for name in straight)


def test_an_error_that_is_kept_keeps_no_worker(tmp_path, monkeypatch):
    """As a notebook keeps the last one, with all that its frames hold."""
    streams, stream = [], Loader.stream

    def kept(self, start, stop):
        streams.append(stream(self, start, stop))
        return streams[-1]

    step = Trainer.train_step

    def fails(self, batch):
        if not streams:  # what a step costs is measured before
            return step(self, batch)
        raise KeyError("made up")

    monkeypatch.setattr(Loader, "stream", kept)
    monkeypatch.setattr(Trainer, "train_step", fails)
    with pytest.raises(KeyError):
        run(tmp_path, workers=1, tune="off")
    assert [inspect.getgeneratorstate(one) for one in streams] == ["GEN_CLOSED"]


def test_resuming_with_other_settings_or_data_is_refused_and_shows_the_difference(tmp_path):
    out = tmp_path / "run"
    run(out, epochs=1, limit=100)
    with pytest.raises(UsageError, match=r"--temperature 0\.1 -> 0\.2"):
        run(out, resume="yes", temperature=0.2, epochs=1, limit=100)
    with pytest.raises((DataError, UsageError)):
        run(out, resume="yes", epochs=1, limit=101)


def test_resume_without_a_checkpoint_starts_and_a_cut_one_is_named(tmp_path):
    out = tmp_path / "run"
    assert run(out, resume="auto", epochs=1, limit=64).steps == 2
    last = out / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="truncated"):
        run(out, resume="yes", epochs=1, limit=64)
