"""`finetune` with features kept: what is written, when they are found again, how it is resumed."""

import json
import os
import signal
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unfreeze.checkpoints.model_file import load_model
from unfreeze.commands import finetune as verb
from unfreeze.commands.evaluate import evaluate
from unfreeze.commands.finetune import finetune
from unfreeze.errors import Interrupted, UsageError
from unfreeze.runs.finetuning import build, train
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.training import trainer as saves_module
from unfreeze.transfer import callbacks as trainer_module
from unfreeze.transfer.feature_cache.store import feature_cache_folder
from unfreeze.transfer.linear_sweep import LinearHeadSweep
from unfreeze.transfer.training_run import FinetuneTrainer

pytestmark = pytest.mark.usefixtures("no_drawing")
COLOURS = {"red": 8, "green": 8, "blue": 8}
HOW = {
    **{
        "arch": "unfreeze/tiny",
        "freeze": "all",
        "precision": "fp32",
        "epochs": 4,
        "image_size": 16,
    },
    **{"head_solver": "sgd", "select": "accuracy"},  # what is trained, and chosen, here
}
PAIR = {"lr": 0.05, "weight_decay": 1e-4}


@pytest.fixture(scope="module")
def begin(colours, tmp_path_factory):
    """(images, a run that trained every layer): what the others start from."""
    folder = tmp_path_factory.mktemp("begin")
    data = colours(folder / "colours", COLOURS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "write_report_or_warn", lambda run, console: None)
        start = {**HOW, "freeze": "none", "weights": "none", "epochs": 1}
        run = finetune(str(data), out=str(folder / "start"), augment="none", **start)
    return data, run.run


@pytest.fixture
def tune(begin, tmp_path):
    """`tune("name", **settings)`: a run from there with features kept."""

    def made(name, **changed):
        data = str(changed.pop("data", begin[0]))
        options = {**HOW, "weights": begin[1], "augment": "none", **changed}
        return finetune(data, out=str(tmp_path / name), **options)

    return made


def config(result):
    return tomllib.loads(Path(result.run, "config.toml").read_text())


def keys():
    return {place.name for place in feature_cache_folder().glob("*")}


def weights(run):
    return load_file(f"{run}/model/model.safetensors")


def test_the_run_is_whole_and_says_what_was_kept(tune, begin):
    result = tune("run", **PAIR)
    found = config(result)
    assert (found["cache"], found["cache_views"], found["lr"]) == ("features", 1, 0.05)
    assert "mean (128)" in found["reasons"]["cache"]
    assert "given" in found["reasons"]["sweep"]
    assert result.frozen_unchanged is True and result.parameters_frozen == 307_360
    start, _ = load_model(begin[1])
    end, card = load_model(result.run)
    assert start.keys() == end.keys() and card.kind == "classifier"
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved == {"head.weight", "head.bias"}
    for name in ("last", "best"):
        state = torch.load(f"{result.run}/checkpoints/{name}.ckpt", weights_only=True)
        assert state["model"].keys() == end.keys()
    written = json.loads(Path(result.run, "evaluation.json").read_text())
    again = evaluate(result.run, str(begin[0]), split="val")
    assert written["accuracy"] == result.val_accuracy == again.accuracy
    assert written["loss"] == pytest.approx(again.loss, abs=1e-5)
    lines = [(m["split"], m["step"]) for m in read_metrics(result.run)]
    assert lines == [(m["split"], m["step"]) for m in read_metrics(tune("off", cache="off").run)]


@pytest.mark.parametrize(
    ("changed", "stores"),
    [
        ({}, 2),
        ({"freeze": "stage:1"}, 2),
        ({"unfreeze_at": "1:stage3,3:all"}, 4),  # the split moves, then there is none
        ({"freeze": "none", "unfreeze_at": "2:-stem,3:-stage1"}, 4),  # frozen after it has learnt
    ],
)
def test_cached_equals_uncached(tune, changed, stores):
    plain = weights(tune("plain", **PAIR, **changed, cache="off").run)
    assert not keys()
    kept = weights(tune("kept", **PAIR, **changed, cache="activations").run)
    assert len(keys()) == stores  # one of train and one of val for each split
    assert all(torch.allclose(kept[n], plain[n], atol=1e-4) for n in plain)


def test_a_written_model_that_differs_is_seen(tune, monkeypatch):
    save = train.save_model

    def tampering(folder, tensors, card):
        held = {name: tensor.clone() for name, tensor in tensors.items()}
        held["stage2.conv1.weight"][0, 0, 0, 0] += 1e-3
        save(folder, held, card)

    monkeypatch.setattr(train, "save_model", tampering)
    assert tune("run", **PAIR).frozen_unchanged is False


def test_drift_behind_the_features_is_seen_and_not_judged_by_them(tune, monkeypatch):
    step, scored = FinetuneTrainer.train_step, []

    def drifting(self, batch):
        loss = step(self, batch)
        with torch.no_grad():
            self.network.stem[1].running_var.mul_(1.01)
        return loss

    score = build.TrainingParts.trainer
    monkeypatch.setattr(FinetuneTrainer, "train_step", drifting)

    def noting(self, *args):
        trainer = score(self, *args)
        plain = self.holdout.score
        self.holdout.score = lambda network: scored.append(1) or plain(network)
        return trainer

    monkeypatch.setattr(build.TrainingParts, "trainer", noting)
    assert tune("run", **PAIR).frozen_unchanged is False
    assert scored == [1]  # the last evaluation went by the images


@pytest.mark.slow
def test_features_are_found_again_by_all_they_follow_from(tune, begin, tmp_path, colours):
    tune("first", **PAIR)
    first = keys()
    assert len(first) == 2  # of train, of val
    tune("again", lr=0.3, weight_decay=0.0, epochs=6, batch_size=5, optimizer="adamw")
    assert keys() == first
    for number, (news, changed) in enumerate(
        (
            (2, {"mean": (0.4, 0.5, 0.5)}),
            (2, {"image_size": 24}),
            (2, {"augment": "photo", "cache_views": 2}),  # validation has no random views
            (2, {"weights": "none"}),
            (1, {"precision": "bf16"}),  # validation is in full precision
            (2, {"freeze": "stage:2", "cache": "activations"}),
        )
    ):
        before = keys()
        tune(f"other{number}", **PAIR, **changed)
        assert len(keys() - before) == news, changed
    other = colours(tmp_path / "colours", COLOURS)
    for name in ("red/000.png", "blue/003.png"):
        pixels = np.asarray(Image.open(other / name)).copy()
        pixels[0, 0, 0] ^= 1
        Image.fromarray(pixels).save(other / name)
    before = keys()
    tune("image", data=other, **PAIR)
    assert keys() != before


def test_a_file_that_changes_behind_its_first_bytes_is_another(
    tune, tmp_path, colours, monkeypatch
):
    monkeypatch.setattr("unfreeze.runs.finetuning.data.HEAD", 50)
    data = colours(tmp_path / "colours", COLOURS)
    tune("first", data=data, **PAIR)
    first = keys()
    os.utime(data / "red/000.png", (1, 1))
    tune("second", data=data, **PAIR)
    assert len(keys() - first) == 2


def test_the_first_views_of_many_are_those_of_few(tune):
    photo = {**PAIR, "augment": "photo", "epochs": 8}
    tune("few", cache_views=2, **photo)
    few = keys()
    result = tune("many", cache_views=3, **photo)
    assert few < keys() and len(keys()) == len(few) + 1
    assert config(result)["cache_views"] == 3
    one = tune("one", cache_views=1, **photo)
    assert (
        config(one)["augment"] == "none" and "no augmentation" in config(one)["reasons"]["augment"]
    )


def test_interrupted_and_resumed_is_the_straight_run(tune, stopped_after):
    options = {**PAIR, "augment": "photo", "cache_views": 2, "epochs": 5}
    straight = tune("straight", **options)
    with stopped_after(7), pytest.raises(Interrupted, match="1 of 5 epochs"):
        tune("broken", **options)
    refused = r"started with cache='features' and cannot resume with off"
    with pytest.raises(UsageError, match=refused):
        tune("broken", resume="yes", **{**options, "cache": "off", "cache_views": None})
    resumed = tune("broken", resume="yes", **options)
    left, right = weights(straight.run), weights(resumed.run)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert resumed.val_accuracy == straight.val_accuracy and resumed.frozen_unchanged is True


@pytest.mark.parametrize(
    "asked",
    [
        {"cache_views": 1, "augment": "photo"},
        {"cache_views": 3, "augment": "none"},
        {"cache_views": 3, "freeze": "none"},
    ],
    ids=["one-view", "no-views", "nothing-kept"],
)
def test_the_same_command_goes_on_whatever_came_of_it(tune, stopped_after, asked):
    options = {**PAIR, **asked}
    straight = tune("straight", **options)
    with stopped_after(7), pytest.raises(Interrupted):
        tune("broken", **options)
    resumed = tune("broken", resume="auto", **options)
    left, right = weights(straight.run), weights(resumed.run)
    assert all(torch.equal(left[name], right[name]) for name in left)
    with pytest.raises(UsageError, match="cannot resume with 2"):
        tune("broken", resume="auto", **{**options, "cache_views": 2})


def test_checkpoints_are_few_unless_asked_for(tune, monkeypatch):
    written = []
    save, save_last = saves_module.save_state, saves_module.save_last

    def noting(path, state):
        written.append(path.name)
        save(path, state)

    def noting_last(folder, state):
        written.append("last.ckpt")
        save_last(folder, state)

    monkeypatch.setattr(saves_module, "save_state", noting)
    monkeypatch.setattr(saves_module, "save_last", noting_last)
    tune("few", **PAIR)
    assert written == ["best.ckpt", "last.ckpt"]
    written.clear()
    tune("many", checkpoint_every=1, **PAIR)
    assert written.count("last.ckpt") == 4
    written.clear()
    monkeypatch.setattr(trainer_module, "SHORT_SECONDS", -1.0)
    tune("slow", **PAIR)
    assert written.count("last.ckpt") == 4


def test_the_sweep_takes_the_best_on_validation(tune):
    result = tune("swept", epochs=6)
    found, lines = config(result), read_metrics(result.run)
    tried = [line for line in lines if line["split"] == "sweep"]
    assert len(tried) == len(found["facts"]["tried"]) == 18
    best = max(tried, key=lambda line: (line["val_accuracy"], -line["val_loss"]))
    assert (found["lr"], found["weight_decay"]) == (best["learning_rate"], best["weight_decay"])
    assert "best of 18 pairs" in found["reasons"]["lr"]
    assert result.val_accuracy == best["val_accuracy"] and result.best_epoch == best["epoch"]
    pair = {"lr": found["lr"], "weight_decay": found["weight_decay"]}
    alone = tune("alone", epochs=6, **pair)
    assert "tried" not in config(alone)["facts"]
    left, right = weights(result.run), weights(alone.run)
    assert all(torch.equal(left[name], right[name]) for name in left)
    again = tune("swept", epochs=6, resume="yes")  # the pair is settled: nothing is tried again
    assert len([m for m in read_metrics(again.run) if m["split"] == "sweep"]) == 18
    assert config(again)["facts"]["tried"] == found["facts"]["tried"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"val": 0.0}, "there is no validation set"),
        ({"head": "mlp:8"}, "single linear head"),
        (PAIR, "are given"),
        ({"sweep": "off"}, None),
    ],
)
def test_where_there_is_no_sweep_the_reason_is_said(tune, changed, says):
    result = tune("run", **changed)
    found = config(result)
    assert "tried" not in found["facts"] and found["cache"] == "features"
    assert (
        found["reasons"].get("sweep") is None if says is None else says in found["reasons"]["sweep"]
    )


def test_only_what_is_not_given_is_swept(tune):
    tried = [m for m in read_metrics(tune("run", lr=0.2).run) if m["split"] == "sweep"]
    assert {line["learning_rate"] for line in tried} == {0.2} and len(tried) == 3


def test_a_sweep_that_is_interrupted_begins_again(tune, monkeypatch):
    step = LinearHeadSweep._step

    def stopping(self, number, *rest):
        step(self, number, *rest)
        if number == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(LinearHeadSweep, "_step", stopping)
        with pytest.raises(Interrupted, match="before the first step") as caught:
            tune("run")
    assert "resume=True" in caught.value.next_step
    made = {
        place: place.stat().st_mtime_ns for place in feature_cache_folder().glob("*/*.safetensors")
    }
    result = tune("run", resume="auto")
    assert result.epochs == 4
    assert made == {place: place.stat().st_mtime_ns for place in made}


def test_a_dry_run_says_it_all_and_keeps_nothing(begin, tmp_path):
    options = {**HOW, "weights": begin[1], "epochs": 30}
    found = finetune(str(begin[0]), dry_run=True, **options)
    assert found.settings["cache"] == "features" and found.settings["cache_views"] == 4
    assert "KiB per image" in found.reasons["cache"] and "18 pairs" in found.reasons["sweep"]
    assert not feature_cache_folder().exists() and not any(tmp_path.iterdir())


def test_what_cannot_be_kept_is_refused_before_the_folder_is_made(tune, tmp_path):
    for changed, says in (
        ({"freeze": "stage:1", "cache": "features"}, "only the head"),
        ({"freeze": "none", "cache": "activations"}, "nothing is frozen"),
        ({"freeze": "norms", "cache": "activations"}, "no single frozen tensor comes before"),
        ({"cache": "off", "cache_views": 2}, "no effect"),
    ):
        with pytest.raises(UsageError, match=says):
            tune("run", **changed)
    assert not (tmp_path / "run").exists()
