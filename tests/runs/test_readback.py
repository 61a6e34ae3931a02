"""A name that a file cannot hold ends a run before its first step, and what comes after none."""

import json

import numpy as np
import pytest
from PIL import Image

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.errors import DataError
from unfreeze.runs import readback
from unfreeze.runs.finetuning import train, trained_features
from unfreeze.transfer.training_run import FinetuneTrainer

TINY = {"arch": "unfreeze/tiny", "weights": "none", "epochs": 1, "image_size": 16, "workers": 0}
NAMES = ("a\nb", "q\"u,o;t'e", "caf\udce9", r"caf\xe9", "🐶", " a", "=1+1", "NaN")


@pytest.fixture
def named(tmp_path, no_drawing):
    """A dataset with classes that are hard to write."""
    draw = np.random.default_rng(0)
    for label in NAMES:
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(6):
            pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{label} {number}.png")
    return tmp_path / "data"


def test_hard_names_are_read_back_everywhere(named, tmp_path):
    made = unfreeze.finetune(str(named), out=str(tmp_path / "run"), **TINY)
    assert len(made.classes) == len(NAMES) and r"caf\xe9" in made.classes
    assert load_model(tmp_path / "run")[1].classes == tuple(made.classes)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["classes"] == made.classes
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("file", ["split.csv", "model.json"])
def test_what_cannot_be_read_back_is_refused_before_the_first_step(
    file, named, tmp_path, monkeypatch
):
    def step(self, *rest):
        raise AssertionError("a step was taken")

    if file == "split.csv":
        read = readback.read_split_csv
        monkeypatch.setattr(readback, "read_split_csv", lambda path: read(path)[1:])
    else:
        held = readback.read_card

        def shorter(place):
            card = held(place)
            return type(card)(card.kind, card.arch, classes=card.classes[1:])

        monkeypatch.setattr(readback, "read_card", shorter)
    monkeypatch.setattr(FinetuneTrainer, "train_step", step)
    with pytest.raises(DataError, match=f"{file} cannot store"):
        unfreeze.finetune(str(named), out=str(tmp_path / "run"), **TINY)


def test_a_run_whose_extras_fail_is_a_run(named, tmp_path, monkeypatch):
    def broken(*given, **more):
        raise RuntimeError("none of these today")

    monkeypatch.setattr(train, "predictions_of", broken)
    for name in ("_feed_meter", "_known_images"):
        monkeypatch.setattr(trained_features, name, broken)
    monkeypatch.setattr(train.LabelledDataset, "write_seen", broken)
    made = unfreeze.finetune(str(named), out=str(tmp_path / "run"), **TINY)
    assert made.frozen_unchanged is None and (tmp_path / "run" / "result.json").is_file()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("none of these today") >= 3
    assert "What the model needs for --unknown could not be written" in log
    assert "The predictions could not be written (RuntimeError: none of these today)" in log
    assert unfreeze.evaluate(made.run, str(named)).n > 0
