"""`--logger` from the command line to the event files, in both trainings."""

import importlib.util
import json

import pytest

from unfreeze.cli.main import main
from unfreeze.cli.parser import parse
from unfreeze.errors import UsageError
from unfreeze.training.trainer import Trainer

QUICK = ("--limit", "64", "--batch-size", "16", "--epochs", "2", "--device", "cpu")


@pytest.fixture
def scalars():
    """(tag, step) -> value of a run's event files."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(run):
        seen = EventAccumulator(str(run / "tensorboard")).Reload()
        names = [n for n in seen.Tags()["scalars"] if not n.startswith("_")]
        found = [(n, e.step, e.value) for n in names for e in seen.Scalars(n)]
        assert len(found) == len({(n, step) for n, step, _ in found})
        return {(n, step): value for n, step, value in found}

    return read


def recorded(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {
        (f"{line['split']}/{name}", line["step"]): pytest.approx(value, rel=1e-6, abs=1e-9)
        for line in lines
        for name, value in line.items()
        if isinstance(value, (int, float)) and name != "step"
    }


def test_pretraining_that_crashed_and_went_on_is_whole_in_tensorboard(
    scalars, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    words = ["pretrain", "digits", "--out", str(run), *QUICK, "--logger", "tensorboard"]
    step = Trainer.train_step

    def crashes(trainer, batch):
        if trainer.step == 6:
            raise RuntimeError("a bug")
        return step(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", crashes)
        assert main(words) == 1
    assert len(scalars(run)) == len(recorded(run)) > 0
    assert main([*words, "--resume", "auto"]) == 0
    assert scalars(run) == recorded(run)
    assert {s for name, s in scalars(run) if name == "train/loss"} == set(range(1, 9))


def test_finetuning_tells_training_and_validation(scalars, tmp_path, coloured):
    data, run = coloured("pics", {"red": 8, "blue": 8}), tmp_path / "run"
    words = ["finetune", str(data), "--out", str(run), "--weights", "none", "--arch"]
    words += ["unfreeze/tiny", "--epochs", "2", "--device", "cpu", "--logger=tensorboard"]
    assert main(words) == 0
    assert scalars(run) == recorded(run)
    assert {n for n, _ in scalars(run)} >= {"train/loss", "val/accuracy", "train/learning_rate"}
    # it may be left out when going on
    assert main([*words[:-1], "--resume", "--logger", "none"]) == 0


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_missing_package_is_named_before_anything_is_written(verb, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else find(name)
    )
    words = [verb, "digits", "--out", str(tmp_path / "run"), "--logger", "mlflow"]
    assert main(words) == 2 and not (tmp_path / "run").exists()
    assert "pip install 'unfreeze[mlflow]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--logger", "wandb", "mlflow", "pics"],
        ["--logger", "wandb,mlflow", "pics"],
        ["pics", "--logger=wandb,mlflow"],
        ["pics", "--logger", "wandb", "mlflow", "--json"],
    ],
)
def test_several_loggers_in_every_spelling(words):
    settings = parse("pretrain", words)
    assert (settings.logger, settings.data) == (("wandb", "mlflow"), ("pics",))


def test_an_unknown_logger_is_refused_with_the_known_ones():
    with pytest.raises(UsageError) as caught:
        parse("pretrain", ["pics", "--logger", "comet"])
    assert "tensorboard" in caught.value.next_step
