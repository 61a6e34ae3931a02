"""`suggest`: which images to label next, through the command line and into `finetune --labels`."""

import csv
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unfreeze.cli.main import main
from unfreeze.commands.finetune import finetune
from unfreeze.commands.pretrain import pretrain
from unfreeze.commands.suggest import suggest
from unfreeze.errors import DataError, UsageError
from unfreeze.models.build import build
from unfreeze.runtime.terminal import Environment

SMALL = {"arch": "unfreeze/tiny", "image_size": 16, "precision": "fp32", "workers": 0}
TINY = SMALL | {"weights": "none", "augment": "none"}
COLOURS = ("red", "green", "blue")


def call(*words):
    out, err = io.StringIO(), io.StringIO()
    code = main(list(map(str, words)), Environment(out, err))
    return code, out.getvalue(), err.getvalue()


def rows_of(path):
    with Path(path).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def fill(path, target, count=None):
    """Writes the table with the true labels, which are in the names, for the first `count`."""
    rows = rows_of(path)
    with Path(target).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ("path", "label", "split"))
        writer.writeheader()
        for number, row in enumerate(rows):
            known = count is None or number < count
            writer.writerow(row | {"label": row["path"].partition("-")[0] if known else ""})
    return target


@pytest.fixture(scope="module")
def flat(colours, tmp_path_factory):
    """60 unlabelled images whose names have their class."""
    place = tmp_path_factory.mktemp("flat")
    data = colours(place / "classes", dict.fromkeys(COLOURS, 20))
    (place / "flat").mkdir()
    for file in data.rglob("*.png"):
        file.rename(place / "flat" / f"{file.parent.name}-{file.name}")
    return place / "flat"


def untrained(data, out, seed=0):
    """A pretraining run of no epochs."""
    return pretrain(str(data), out=str(out), epochs=0, seed=seed, **SMALL).run


@pytest.fixture(scope="module")
def backbone(flat, tmp_path_factory):
    return untrained(flat, tmp_path_factory.mktemp("backbone") / "run")


@pytest.fixture(scope="module")
def suggested(flat, backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "labels.csv"
    code, printed, _ = call("suggest", backbone, flat, "--budget", 20, "--out", out, "--json")
    assert code == 0
    return out, json.loads(printed)


def cold(backbone, data, out, budget=20, **settings):
    return suggest(backbone, str(data), out, budget=budget, **settings)


def test_the_table_has_paths_empty_labels_and_a_test_set(flat, suggested):
    out, result = suggested
    assert out.read_text().splitlines()[0] == "path,label,split"
    rows = rows_of(out)
    assert [{"path": r["path"], "split": r["split"]} for r in rows] == result["suggestions"]
    assert {row["label"] for row in rows} == {""} and len({row["path"] for row in rows}) == 20
    assert all((flat / row["path"]).is_file() for row in rows)
    assert [number for number, row in enumerate(rows) if row["split"] == "test"] == [9, 19]
    assert (result["train"], result["test"], result["images"]) == (18, 2, 60)
    assert (result["by"], result["reason"]) == ("typical", "no image has a label yet")
    assert (result["labelled"], result["unreadable"], result["near_duplicates"]) == (0, 0, 0)


def test_the_same_images_are_chosen_however_they_are_packed(flat, backbone, suggested, tmp_path):
    names = sorted(file.name for file in flat.iterdir())
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name in reversed(names):
            archive.write(flat / name, name)
    shuffled = np.random.default_rng(0).permutation(names).tolist()
    shutil.copytree(flat, tmp_path / "copy")
    (tmp_path / "copy/list.csv").write_text("path\n" + "\n".join(shuffled) + "\n")
    for data in (flat, tmp_path / "d.zip", tmp_path / "copy/list.csv"):
        result = cold(backbone, data, tmp_path / "o.csv")
        assert result.suggestions == suggested[1]["suggestions"], data
    other = cold(backbone, flat, tmp_path / "o.csv", seed=1)
    assert other.suggestions != suggested[1]["suggestions"]


def test_the_test_set_depends_on_no_feature_and_no_method(flat, backbone, suggested, tmp_path):
    def held_out(result):
        return [row["path"] for row in result["suggestions"] if row["split"] == "test"]

    expected = held_out(suggested[1])
    others = untrained(flat, tmp_path / "other", 5)
    result = cold(others, flat, tmp_path / "o.csv")
    assert held_out({"suggestions": result.suggestions}) == expected
    assert result.suggestions != suggested[1]["suggestions"]
    for by in ("random", "typical"):
        result = cold(backbone, flat, tmp_path / "o.csv", by=by)
        assert held_out({"suggestions": result.suggestions}) == expected
        assert (result.by, result.reason) == (by, "as given")


def test_every_unlabelled_image_may_be_in_the_test_set(flat, backbone, tmp_path):
    drawn = set()
    for seed in range(12):
        result = cold(backbone, flat, tmp_path / "o.csv", budget=60, seed=seed, by="random")
        assert result.test == 6 and len({row["path"] for row in result.suggestions}) == 60
        drawn |= {row["path"] for row in result.suggestions if row["split"] == "test"}
    # an image is missed by 12 draws of a tenth with probability 0.28
    assert len(drawn) > 32 and {name.partition("-")[0] for name in drawn} == set(COLOURS)


@pytest.fixture(scope="module")
def labelled(flat, suggested, tmp_path_factory):
    return fill(suggested[0], tmp_path_factory.mktemp("labels") / "labels.csv")


@pytest.fixture(scope="module")
def run(flat, labelled, tmp_path_factory):
    """A run on the suggested images with their true labels."""
    out = tmp_path_factory.mktemp("run") / "run"
    result = finetune(str(flat), labels=str(labelled), out=str(out), epochs=1, **TINY)
    assert result.classes == sorted(COLOURS) and result.images <= 18
    return out


def test_filled_in_it_goes_into_finetune_and_test_rows_into_evaluate(flat, labelled, run):
    code, printed, _ = call("evaluate", run, flat, "--labels", labelled, "--json")
    result = json.loads(printed)
    assert code == 0 and (result["n"], result["split"], result["seen_in_training"]) == (
        2,
        "test",
        0,
    )


def test_rows_without_a_label_are_unlabelled(flat, suggested, backbone, tmp_path):
    some = fill(suggested[0], tmp_path / "some.csv", 12)
    result = finetune(str(flat), labels=str(some), out=str(tmp_path / "run"), epochs=1, **TINY)
    assert result.images <= 11
    again = cold(backbone, flat, tmp_path / "o.csv", budget=40, labels=str(some))
    paths = {row["path"] for row in again.suggestions}
    assert again.labelled == 12
    assert paths.isdisjoint(row["path"] for row in rows_of(some) if row["label"])
    # the other test row still waits for its label
    assert paths.isdisjoint(row["path"] for row in rows_of(some) if row["split"] == "test")
    assert paths & {row["path"] for row in rows_of(some) if not row["label"]}


def test_labelled_images_are_never_suggested(flat, labelled, backbone, run, tmp_path):
    known = {row["path"] for row in rows_of(labelled)}
    for weights, ways in ((backbone, ("typical", "random")), (run, ("uncertain",))):
        for by in ways:
            given = {"budget": 40, "by": by, "labels": labelled}
            result = suggest(weights, flat, tmp_path / "o.csv", **given)
            paths = {row["path"] for row in result.suggestions}
            assert len(paths) == 40 and not paths & known and result.labelled == 20


def test_a_run_knows_the_images_that_it_was_trained_on(flat, labelled, run, tmp_path):
    trained = {row["path"] for row in rows_of(labelled) if row["split"] == "train"}
    result = suggest(run, flat, tmp_path / "o.csv", budget=42)
    assert result.labelled == 18
    assert {row["path"] for row in result.suggestions}.isdisjoint(trained)
    with pytest.raises(UsageError, match="more than the 42 unlabelled images"):
        suggest(run, flat, tmp_path / "o.csv", budget=43)


def test_auto_takes_uncertain_images_once_there_are_labels(
    flat, suggested, run, tmp_path, monkeypatch
):
    many = suggest(run, flat, tmp_path / "o.csv", budget=10)
    assert many.by == "uncertain"
    assert many.reason == "18 labels for 3 classes, at least 4 for each"
    with monkeypatch.context() as patch:
        patch.setattr("unfreeze.commands.suggest.LITTLE_GAIN", 6)
        more = suggest(run, flat, tmp_path / "o.csv", budget=10)
    assert more.reason.endswith("; from 6 on, expect about a point more than at random")
    assert more.suggestions == many.suggestions
    some = fill(suggested[0], tmp_path / "some.csv", 12)
    young = finetune(str(flat), labels=str(some), out=str(tmp_path / "run"), epochs=1, **TINY).run
    few = suggest(young, flat, tmp_path / "o.csv", budget=10)
    assert few.by == "typical"
    assert few.reason == "11 labels for 3 classes, fewer than 4 for each"
    shutil.copytree(Path(young) / "model", tmp_path / "model")
    (tmp_path / "model/seen_images.npz").unlink()
    foreign = suggest(tmp_path / "model", flat, tmp_path / "o.csv", budget=10)
    assert (foreign.by, foreign.labelled) == ("uncertain", 0)
    assert foreign.reason.endswith("has 3 classes, of how many labels is not known")


def test_images_beside_class_folders_are_unlabelled(backbone, coloured, tmp_path):
    data = coloured("more", dict.fromkeys(COLOURS, 5))
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(data / f"{number}.png")
    result = cold(backbone, data, tmp_path / "o.csv", budget=6)
    assert (result.by, result.labelled) == ("typical", 15)
    assert result.reason == "15 labels, but no fine-tuned model that could be uncertain"
    assert {row["path"] for row in result.suggestions} == {f"{number}.png" for number in range(6)}


def test_uncertain_images_are_those_of_the_model(flat, run, tmp_path):
    """The features and margins are those of `embed` and `predict`."""
    import unfreeze
    from unfreeze.evaluation.label_selection import Picker, clustering_space, pick_uncertain

    result = suggest(run, flat, tmp_path / "o.csv", budget=10, by="uncertain")
    unfreeze.embed(run, str(flat), str(tmp_path / "f.npz"))
    with np.load(tmp_path / "f.npz") as arrays:
        features, paths = arrays["features"], arrays["paths"].tolist()
    shares = [p.probabilities for p in unfreeze.predict(run, str(flat), probabilities=True)]
    values = np.sort([list(share.values()) for share in shares], axis=1)
    doubt = 1 - (values[:, -1] - values[:, -2])
    everything = suggest(run, flat, tmp_path / "a.csv", budget=42, by="random")
    unlabelled = {row["path"] for row in everything.suggestions}
    held_out = {row["path"] for row in result.suggestions if row["split"] == "test"}
    free = np.array([path in unlabelled and path not in held_out for path in paths])
    picker = Picker(free, 9, lambda position: np.arange(60) == position)
    pick_uncertain(clustering_space(features), doubt, picker, seed=0)
    chosen = [row["path"] for row in result.suggestions if row["split"] == "train"]
    assert [paths[pick] for pick in picker.picks] == chosen


def test_near_duplicates_are_never_suggested_twice(flat, backbone, tmp_path):
    data = tmp_path / "twice"
    data.mkdir()
    for number in range(20):
        grid = np.random.default_rng(number).integers(0, 255, (6, 6, 3), np.uint8)
        image = Image.fromarray(grid).resize((96, 96), Image.Resampling.BICUBIC)
        image.save(data / f"{number:02}.png")
        image.save(data / f"{number:02}-again.jpg", quality=85)
        shutil.copy(data / f"{number:02}.png", data / f"{number:02}-copy.png")
    (data / "labels.csv").write_text("path,label\n03.png,a\n07-again.jpg,b\n")
    for by in ("typical", "random"):
        result = cold(backbone, data, tmp_path / "o.csv", budget=30, by=by)
        names = sorted(row["path"][:2] for row in result.suggestions)
        assert names == [f"{number:02}" for number in range(20)]
        assert result.near_duplicates == 40 and (result.train, result.test) == (17, 3)
        given = {"labels": str(data / "labels.csv"), "by": by}
        result = cold(backbone, data, tmp_path / "o.csv", budget=15, **given)
        names = {row["path"][:2] for row in result.suggestions}
        assert len(names) == 15 and names.isdisjoint({"03", "07"})


def test_fewer_than_the_budget_are_said(backbone, tmp_path, flat):
    data = shutil.copytree(flat, tmp_path / "data")
    for name in ("red-000.png", "blue-003.png"):
        (data / name).write_bytes(b"no image at all")
    words = ["suggest", backbone, data, "--out", tmp_path / "o.csv"]
    code, printed, said = call(*words, "--budget", 60, "--json")
    result = json.loads(printed)
    assert code == 0 and result["unreadable"] == 2 and len(result["suggestions"]) == 58
    assert "58 images are suggested instead of 60" in said and "left out: blue-003.png" in said
    code, printed, _ = call(*words, "--budget", 20)
    assert code == 0 and "20 of 60 images to label: 18 for training, chosen as typical" in printed
    assert "unreadable" in printed and f"--labels {tmp_path / 'o.csv'}" in printed


def test_labels_are_never_overwritten(flat, backbone, tmp_path):
    out = tmp_path / "labels.csv"
    cold(backbone, flat, out)
    before = out.read_text()
    cold(backbone, flat, out, seed=3)  # nothing filled in
    assert out.read_text() != before
    fill(out, tmp_path / "filled.csv", 1)
    out.write_bytes((tmp_path / "filled.csv").read_bytes())
    before = out.read_bytes()
    words = ["suggest", backbone, flat, "--budget", 9, "--out", out]
    for more in ([], ["--labels", out]):
        code, printed, _ = call(*words, *more)
        assert (code, printed) == (2, "") and out.read_bytes() == before
    assert "holds 1 label, so it was not overwritten" in call(*words)[2]
    for text in ("path,label\na.png,\n", "path;label;split\na.png;red;train\n", "my notes"):
        out.write_text(text)
        assert call(*words)[0] == 2 and out.read_text() == text


def test_labels_filled_in_meanwhile_are_kept(flat, backbone, tmp_path, monkeypatch):
    out = tmp_path / "labels.csv"
    cold(backbone, flat, out)
    from unfreeze.commands import suggest as command

    choose = command.choose

    def slow(*arguments, **named):
        fill(out, tmp_path / "filled.csv", 3)
        out.write_bytes((tmp_path / "filled.csv").read_bytes())
        return choose(*arguments, **named)

    monkeypatch.setattr(command, "choose", slow)
    with pytest.raises(UsageError, match="holds 3 labels"):
        cold(backbone, flat, out)
    assert out.read_bytes() == (tmp_path / "filled.csv").read_bytes()


def test_wrong_use_is_one_sentence(flat, backbone, tmp_path, coloured):
    usual = ["suggest", backbone, flat, "--out", tmp_path / "o.csv"]
    for words, code, expected in (
        (usual, 2, "suggest needs a budget."),
        ([*usual, "--budget", "0"], 2, "--budget must be at least 1"),
        ([*usual, "--budget", "61"], 2, "--budget 61 is more than the 60 unlabelled images."),
        ([*usual[:-2], "--budget", "5"], 2, "suggest needs an output file."),
        ([*usual, "--budget", "5", "--by", "uncertain"], 2, "needs a model with classes"),
        ([*usual, "--budget", "5", "--by", "luck"], 2, "typical"),
    ):
        result, printed, said = call(*words)
        assert (result, printed) == (code, "") and expected in said and "Traceback" not in said
    data = coloured("all", {"red": 3, "blue": 3})
    with pytest.raises(DataError, match="has no image left to label"):
        cold(backbone, data, tmp_path / "o.csv", budget=1)
    assert not (tmp_path / "o.csv").exists()


def test_images_of_a_validation_or_test_set_stay_there(backbone, coloured, tmp_path):
    data = coloured("split", {"train/red": 3, "train/blue": 3, "test/red": 2, "test/blue": 2})
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(data / f"{number}.png")
        Image.fromarray(255 - pixels).save(data / f"waits-{number}.png")
    table = tmp_path / "labels.csv"
    table.write_text("path,label,split\nwaits-0.png,,test\nwaits-1.png,,val\nwaits-2.png,,train\n")
    result = cold(backbone, data, tmp_path / "o.csv", budget=6)
    assert not any("red" in row["path"] or "blue" in row["path"] for row in result.suggestions)
    result = cold(backbone, data, tmp_path / "o.csv", budget=9, labels=str(table))
    paths = {row["path"] for row in result.suggestions}
    assert paths.isdisjoint({"waits-0.png", "waits-1.png"})


def test_images_with_several_labels_are_labelled(flat, backbone, tmp_path):
    names = sorted(file.name for file in flat.iterdir())
    lines = [f"{name},{'red;blue' if i % 2 else 'blue;green'}" for i, name in enumerate(names[:30])]
    (tmp_path / "l.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    result = cold(backbone, flat, tmp_path / "o.csv", budget=30, labels=str(tmp_path / "l.csv"))
    assert {row["path"] for row in result.suggestions} == set(names[30:])


def test_weights_without_a_run_suggest(flat, tmp_path):
    torch.save(build("unfreeze/tiny").state_dict(), tmp_path / "tiny.pth")
    data = tmp_path / "few"
    data.mkdir()
    for file in sorted(flat.iterdir())[::8]:
        shutil.copy(file, data)
    given = {"budget": 5, "arch": "unfreeze/tiny"}
    result = suggest(tmp_path / "tiny.pth", data, tmp_path / "o.csv", **given)
    assert (result.by, result.train, result.test) == ("typical", 4, 1)
    assert [row["path"] for row in result.rows()] == [
        row["path"] for row in rows_of(tmp_path / "o.csv")
    ]
