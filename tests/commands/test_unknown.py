"""A model that says "I don't know": `predict --unknown`, and what `evaluate` says of it."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unfreeze
from unfreeze.checkpoints.model_file import read_card
from unfreeze.cli.main import main
from unfreeze.commands.predict import load
from unfreeze.errors import DataError, UsageError, WeightsError
from unfreeze.transfer.callbacks import Validation
from unfreeze.transfer.known_images import FILE, LogitsAndFeatures, load_known_images

TINY = {"arch": "unfreeze/tiny", "weights": "none", "augment": "none", "precision": "fp32"}
DIGITS = {**TINY, "freeze": "all", "image_size": 16, "val": 0.3}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A frozen network with a solved head, on digits."""
    out = tmp_path_factory.mktemp("digits") / "run"
    return unfreeze.finetune("digits", out=str(out), **DIGITS).run


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Images that are no digits."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory, colours):
    """A run with four validation images."""
    folder = tmp_path_factory.mktemp("few")
    data = colours(folder / "data", {"train/red": 8, "train/green": 8, "val/red": 2, "val/green": 2,
                                     "test/red": 4, "test/green": 4})  # fmt: skip
    return data, unfreeze.finetune(str(data), out=str(folder / "run"), epochs=1, **TINY).run


def command(capsys, *words):
    """What a command prints on stdout."""
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_known_images_are_answered_and_noise_is_not(digits, noise):
    known = unfreeze.predict(digits, "digits", unknown=0.95, top=2, batch_size=100)
    strange = unfreeze.predict(digits, str(noise), unknown=0.95)
    assert np.mean([p.label is not None for p in known]) > 0.3
    assert [p.label for p in strange].count(None) > 0.8 * len(strange)
    assert np.median([p.ood for p in strange]) > 0.95 > np.median([p.ood for p in known])
    for prediction in known:
        assert prediction.keys() == ("path", "label", "probability", "top", "set", "ood")
        best = prediction.top[0]["label"]
        answered = prediction.set == [best] and prediction.ood < 0.95
        assert prediction.label == (best if answered else None)
    lower = unfreeze.predict(digits, "digits", unknown=0.8)
    assert all(set(a.set) <= set(b.set) for a, b in zip(lower, known, strict=True))
    plain = unfreeze.predict(digits, "digits")
    assert "set" not in plain[0].keys() and plain[0].label is not None  # noqa: SIM118
    with pytest.raises(KeyError):
        plain[0]["ood"]


def test_what_evaluate_says_is_what_predict_does(digits, capsys):
    told = json.loads(command(capsys, "evaluate", digits, "digits", "--split", "test", "--json"))
    unknown = told["unknown"]
    rows = unfreeze.predict(digits, "digits", unknown=0.95)
    with (Path(digits) / "predictions.csv").open(newline="") as file:
        labels = {row["path"]: row["label"] for row in csv.DictReader(file)}
    rows = [row for row in rows if row.path in labels]
    assert unknown["n"] == len(rows) == len(labels) == told["n"]
    answered = [row for row in rows if row.label is not None]
    assert told["answered"] == unknown["answered"] == pytest.approx(len(answered) / len(rows))
    right = np.mean([row.label == labels[row.path] for row in answered])
    assert told["accuracy_answered"] == pytest.approx(right)
    covered = np.mean([labels[row.path] in row.set for row in rows])
    assert told["coverage"] == pytest.approx(covered)
    assert told["set_size"] == pytest.approx(np.mean([len(row.set) for row in rows]))
    low, high = unknown["coverage_interval"]
    assert low < 0.97 and high > 0.93 and told["accuracy_answered"] > told["accuracy"]
    assert unknown["curve"][-1] == [1.0, pytest.approx(1 - told["accuracy"])]
    assert unknown["aurc"] < 1 - told["accuracy"]
    page = (Path(digits) / "report.html").read_text()
    assert "accuracy of the answered" in page and "Errors by share of answered images" in page
    text = command(capsys, "evaluate", digits, "digits", "--split", "test", "--unknown", "0.8")
    assert "set to 80 %" in text


def test_images_that_set_the_thresholds_give_no_figures(digits, capsys):
    told = json.loads(command(capsys, "evaluate", digits, "digits", "--split", "val", "--json"))
    assert told["coverage"] is told["answered"] is None
    assert "thresholds on them" in told["unknown"]["reason"]
    mixed = json.loads(command(capsys, "evaluate", digits, "digits", "--split", "all", "--json"))
    test = json.loads(command(capsys, "evaluate", digits, "digits", "--split", "test", "--json"))
    assert mixed["unknown"] == test["unknown"]  # new images alone
    text = command(capsys, "evaluate", digits, "digits", "--split", "val")
    assert "not evaluated. The run trained on these images" in text
    last = unfreeze.evaluate(digits, "digits", split="test", weights_of="last")
    assert "best epoch" in last.unknown.reason and last.coverage is None


def test_too_few_validation_images_are_refused_in_words(few, capsys):
    data, run = few
    assert main(["predict", run, str(data), "--unknown", "0.95"]) == 3
    assert "needs at least 19 validation images; the run has 4." in capsys.readouterr().err
    with pytest.raises(DataError) as caught:
        unfreeze.predict(run, str(data), unknown=0.95)
    assert caught.value.next_step.startswith("Use unknown=0.8, or fine-tune")
    assert len(unfreeze.predict(run, str(data), unknown=0.8)) == 28
    told = unfreeze.evaluate(run, str(data))
    assert told.answered is None and "at least 19 validation images" in told.unknown.reason


def test_a_model_folder_without_the_file_or_with_another_is_named(digits, few, tmp_path):
    for name, change in {
        "without": lambda path: path.unlink(),
        "other": lambda path: shutil.copy(Path(few[1]) / "model" / FILE, path),
        "damaged": lambda path: path.write_bytes(path.read_bytes()[:-4] + b"\0\1\2\3"),
    }.items():
        model = tmp_path / name
        shutil.copytree(Path(digits) / "model", model)
        assert unfreeze.predict(str(model), "digits", unknown=0.9)
        change(model / FILE)
        words = {"without": "no known_images", "other": "other weights", "damaged": "is damaged"}
        with pytest.raises(WeightsError, match=words[name]):
            unfreeze.predict(str(model), "digits", unknown=0.9)
        assert words[name] in unfreeze.evaluate(str(model), "digits", split="test").unknown.reason
        assert unfreeze.predict(str(model), "digits")


def test_features_are_what_the_head_gets(digits):
    classifier = load(digits)
    images = torch.randn(5, 3, 16, 16)
    both = LogitsAndFeatures(classifier.network, classifier.head)(images)
    logits, features = both[:, :10], both[:, 10:]
    assert torch.equal(logits, classifier(images))
    head = classifier.network.get_submodule(classifier.head[0].rpartition(".")[0])
    assert torch.allclose(head(features), logits, atol=1e-4)
    assert not head._forward_pre_hooks


# squeezenet1_1 ends in a convolution, test_vit has tokens; an MLP head gets features, too
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"arch": "torchvision/squeezenet1_1", "image_size": 48, "limit": 120},
        pytest.param({"head": "mlp:8", "epochs": 1, "limit": 200}, marks=pytest.mark.slow),
        pytest.param({"arch": "timm/test_vit", "limit": 60}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_cached_features_give_the_same_as_images(digits, tmp_path, monkeypatch, options):
    given = {**DIGITS, **options}
    first = unfreeze.finetune("digits", out=str(tmp_path / "a"), **given).run if options else digits
    monkeypatch.setattr(Validation, "cached_for", lambda self, model: None)
    other = unfreeze.finetune("digits", out=str(tmp_path / "b"), **given).run
    a, b = (load_known_images(run, read_card(run)) for run in (first, other))
    assert np.array_equal(a.labels, b.labels) and a.choice.measures == b.choice.measures
    assert torch.allclose(a.logits, b.logits, rtol=1e-3, atol=1e-3)
    assert a.features.shape == b.features.shape
    assert np.allclose(a.features, b.features, rtol=2e-3, atol=2e-3)  # float16
    assert np.median(np.abs(a.ood - b.ood)) < 0.02


def test_features_cached_in_another_type_are_stored_too(digits, tmp_path):
    options = {**DIGITS, "precision": "bf16"}
    other = unfreeze.finetune("digits", out=str(tmp_path / "run"), **options).run
    a, b = (load_known_images(run, read_card(run)) for run in (digits, other))
    assert np.array_equal(a.labels, b.labels)
    assert np.allclose(a.features, b.features, rtol=0.05, atol=0.05)
    assert unfreeze.evaluate(other, "digits", split="test").coverage > 0.9


def test_a_stored_temperature_changes_the_sets_of_both_alike(digits, tmp_path):
    known, card = load_known_images(digits, read_card(digits)), read_card(digits)
    some = known.logits[::2]
    half = replace(known, logits=known.logits[1::2], labels=known.labels[1::2], ood=known.ood[1::2])
    for temperature in (0.5, 1.0, 4.0):
        sets = half.decide(some, known.ood[::2], temperature, 0.9).sets
        share = sets[np.arange(len(sets)), known.labels[::2]].mean()
        assert 0.8 < share < 0.97
    assert card.temperature == 1.0


def test_formats_of_predictions(digits, noise, tmp_path, capsys):
    files = [str(noise / "00.png"), str(noise / "01.png")]
    lines = tmp_path / "found.jsonl"
    command(capsys, "predict", digits, *files, "--unknown", "0.95", "--out", str(lines))
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    printed = json.loads(command(capsys, "predict", digits, *files, "--unknown=0.95", "--json"))
    assert rows == printed and [row["label"] for row in rows] == [None, None]
    command(capsys, "predict", digits, *files, "--unknown", "0.95", "--out", str(lines))  # ours
    table = command(capsys, "predict", digits, *files, "--unknown", "0.95", "--top", "2")
    first, *lines = table.splitlines()
    assert first == "path,label,probability,label_2,probability_2,set,ood"
    cells = next(csv.reader(lines[:1]))
    assert (cells[1] == "" and cells[5].split("|") == printed[0]["set"]) or cells[5] == ""
    out = tmp_path / "tasks.json"
    words = ["predict", digits, *files, "--format", "label-studio", "--out", str(out)]
    command(capsys, *words)
    tasks = json.loads(out.read_text())
    assert tasks[0]["data"]["image"] == f"/data/local-files/?d={files[0].removeprefix('/')}"
    (made,) = tasks[0]["predictions"]
    (result,) = made["result"]
    label = unfreeze.predict(digits, files)[0].label
    assert result["value"] == {"choices": [label]} and made["model_version"] == Path(digits).name
    assert (result["type"], result["from_name"], result["to_name"]) == ("choices", "label", "image")
    command(capsys, *words, "--unknown", "0.95")
    assert json.loads(out.read_text())[0]["predictions"] == []
    out.write_text('[{"mine": 1}]')
    assert main(words) == 2 and "was not written by this command" in capsys.readouterr().err
    with pytest.raises(UsageError, match="format is that of a file"):
        unfreeze.predict(digits, files, format="jsonl")


def test_images_without_an_answer_are_sorted_into_unknown(digits, noise, tmp_path, capsys):
    folder = tmp_path / "sorted"
    words = ("--unknown", "0.95", "--sort-into", str(folder))
    command(capsys, "predict", digits, str(noise), *words)
    assert sorted(path.name for path in folder.iterdir()) == ["unknown"]
    assert len(list((folder / "unknown").iterdir())) == 40
