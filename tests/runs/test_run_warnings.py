"""Warnings of whole runs: what is broken on purpose is named; healthy runs have none."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unfreeze
from unfreeze.checkpoints.model_file import load_model, save_model
from unfreeze.commands.report import report
from unfreeze.data.index.splits import read_split_csv

TINY = {"arch": "unfreeze/tiny", "weights": "none", "augment": "none", "device": "cpu"}
QUICK = {**TINY, "image_size": 16, "epochs": 1}
PAIRS = 4


def page_of_comparison(folder):
    """The page of a comparison, none of its runs."""
    if (Path(folder) / "compare.json").exists():
        report(folder)


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr(
        "unfreeze.commands.finetune.write_report_or_warn", lambda run, console: None
    )
    monkeypatch.setattr(
        "unfreeze.commands.pretrain.write_report_or_warn", lambda run, console: None
    )
    monkeypatch.setattr("unfreeze.commands.compare.report", page_of_comparison)


def codes(result):
    return [one.code for one in result.warnings]


def scene(seed, side=96):
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def pair(folder, one, other, seed):
    """An image, and a smaller save of it."""
    scene(seed).save(folder / f"{one}.png")
    scene(seed).resize((80, 80)).save(folder / f"{other}.jpg", quality=80)


@pytest.fixture
def leaky(coloured):
    """Train and val, of which PAIRS images of each of two classes are nearly the same."""
    counts = {f"{s}/{c}": n for s, n in (("train", 8), ("val", 14)) for c in ("red", "blue")}
    folder = coloured("leaky", counts, side=40)
    for place, name in enumerate(("red", "blue")):
        for number in range(PAIRS):
            seed = 100 * place + number
            pair(folder, f"train/{name}/near{number}", f"val/{name}/near{number}", seed)
    return folder


def test_a_leak_is_found_by_every_verb_that_measures(leaky, tmp_path):
    made = unfreeze.finetune(leaky, out=str(tmp_path / "run"), **QUICK)
    assert made.leaked == 2 * PAIRS and "leakage" in codes(made)
    # the model's folder alone knows it
    alone = shutil.copytree(tmp_path / "run/model", tmp_path / "alone")
    found = unfreeze.evaluate(str(alone), leaky)
    assert (found.split, found.leaked, found.seen_in_training) == ("val", 2 * PAIRS, 0)
    assert "leakage" in codes(found)
    # the metric without them, beside counting by hand
    unfreeze.evaluate(made.run, leaky)
    rows = (tmp_path / "run/predictions.csv").read_text().splitlines()[1:]
    clean = [row.split(",")[1] == row.split(",")[2] for row in rows if "near" not in row]
    assert len(clean) == 28
    assert found.accuracy_unleaked == made.accuracy_unleaked == pytest.approx(np.mean(clean))
    # scan and show say the same of the data
    for result in (unfreeze.scan(leaky), unfreeze.show(leaky, out=str(tmp_path / "page.html"))):
        across = [one for one in result.problems if one["reason"] == "across splits"]
        assert len(across) == made.leaked
    assert "None found" not in (tmp_path / "page.html").read_text()
    # train itself is all known, and no accuracy is left
    known = unfreeze.evaluate(str(alone), leaky, split="train")
    assert known.leaked == known.n == known.seen_in_training and known.accuracy_unleaked is None


def test_the_count_follows_the_files(leaky, tmp_path):
    """Each leak that is mended is one less; near-duplicates inside of train are none."""
    (leaky / "val/red/near0.jpg").unlink()
    scene(77).save(leaky / "val/blue/near1.jpg")  # another image under the name
    (leaky / "val/blue/000.png").write_bytes((leaky / "train/red/000.png").read_bytes())
    pair(leaky / "train/red", "twin", "twins", 55)
    made = unfreeze.finetune(leaky, out=str(tmp_path / "run"), **QUICK)
    assert made.leaked == 2 * PAIRS - 2 + 1
    found = unfreeze.evaluate(made.run, leaky)
    assert (found.leaked, found.seen_in_training) == (made.leaked, 1)
    for path in (leaky / "val").rglob("near*"):
        path.unlink()
    (leaky / "val/blue/000.png").unlink()
    clean = unfreeze.finetune(leaky, out=str(tmp_path / "clean"), **QUICK)
    assert clean.leaked == 0 and clean.accuracy_unleaked == clean.val_accuracy
    assert "leakage" not in codes(clean)


def test_where_the_split_is_cut_here_near_duplicates_stay_on_one_side(coloured, tmp_path):
    folder = coloured("whole", {"red": 30, "blue": 30}, side=40)
    for number in range(12):
        name = ("red", "blue")[number % 2]
        pair(folder / name, f"near{number:02}", f"near{number:02}b", number)
    made = unfreeze.finetune(folder, out=str(tmp_path / "run"), **QUICK)
    assert made.leaked == 0 and "leakage" not in codes(made)
    sides = {}
    for row in read_split_csv(tmp_path / "run/split.csv"):
        if found := re.search(r"near(\d\d)", row.path):
            sides.setdefault(found[1], set()).add(row.split)
    assert len(sides) == 12 and all(len(one) == 1 for one in sides.values())
    assert {"train"} in sides.values() and {"val"} in sides.values()
    reason = (tmp_path / "run/config.toml").read_text()
    assert "12 groups of near-duplicates stay on one side" in reason


def test_a_model_that_does_not_know_what_it_saw_says_so(leaky, tmp_path):
    made = unfreeze.finetune(leaky, out=str(tmp_path / "run"), **QUICK)
    (tmp_path / "run/model/seen_images.npz").unlink()
    found = unfreeze.evaluate(str(tmp_path / "run/model"), leaky)
    assert made.leaked and found.leaked is None and found.accuracy_unleaked is None
    assert "leakage" not in codes(found)


def test_a_comparison_names_the_leak_once(leaky, tmp_path):
    made = unfreeze.finetune(leaky, out=str(tmp_path / "run"), **QUICK)
    how = {"image_size": 16, "epochs": 1, "augment": "none", "device": "cpu", "lr": 0.01}
    out = str(tmp_path / "cmp")
    found = unfreeze.compare(leaky, ["none", made.run], out=out, seeds=1, **how)
    assert codes(found).count("leakage") == 1
    assert all(one.leaked == 2 * PAIRS for one in found.runs)
    assert "leakage" in (tmp_path / "cmp/compare.csv").read_text()
    html = (tmp_path / "cmp/report.html").read_text()
    assert "are duplicates or near-duplicates of training images" in html


# --- runs that fail, and runs that do not ---


@pytest.fixture(scope="module")
def colour_run(colours, tmp_path_factory):
    """A classifier of three colours, and its data: 40 training images of each."""
    folder = tmp_path_factory.mktemp("healthy")
    counts = {"red": 40, "green": 40, "blue": 40}
    data = colours(folder / "data", counts, side=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfreeze.commands.finetune.write_report_or_warn", lambda run, console: None)
        return data, unfreeze.finetune(data, out=str(folder / "run"), epochs=6, lr=0.05, **TINY)


def test_a_healthy_run_has_no_warning(colour_run):
    data, made = colour_run
    assert made.val_accuracy > 0.9 and made.warnings == []
    assert unfreeze.evaluate(made.run, data).warnings == []
    assert (made.leaked, made.accuracy_unleaked) == (0, made.val_accuracy)
    assert json.loads((Path(made.run) / "warnings.json").read_text()) == []


@pytest.mark.parametrize("how", [{"freeze": "all"}, {"epochs": 2, "lr": 0.05}, {"val": 0}])
def test_healthy_runs_on_digits_have_no_warning(how, tmp_path):
    """Frozen at random, trained for two epochs, and without validation."""
    how = {"epochs": 2, **TINY, **how}
    made = unfreeze.finetune("digits", out=str(tmp_path / "run"), limit=600, **how)
    assert made.warnings == []
    assert unfreeze.evaluate(made.run, "digits").warnings == []


def test_a_learning_rate_of_nothing_learns_nothing(colour_run, tmp_path):
    data, _ = colour_run
    made = unfreeze.finetune(data, out=str(tmp_path / "run"), epochs=3, lr=0.0, **TINY)
    assert "nothing_learned" in codes(made)
    (said,) = [one.message for one in made.warnings if one.code == "nothing_learned"]
    assert "ln 3 = 1.099" in said and "The learning rate is 0" in said
    assert dict(made.warnings[0]) == dataclasses.asdict(made.warnings[0])


def changed(run, out, change):
    """The model of a run with its tensors changed."""
    tensors, card = load_model(run)
    change(tensors)
    save_model(out, tensors, card)
    return str(out)


def test_a_model_that_favours_a_class_is_warned_of(colour_run, tmp_path):
    data, made = colour_run

    def always(tensors):
        tensors["head.bias"][1] += 1e3

    def never(tensors):
        tensors["head.bias"][1] -= 1e3

    found = unfreeze.evaluate(changed(made.run, tmp_path / "always", always), data, split="all")
    assert codes(found) == ["one_class", "majority_accuracy"]
    assert "All 120 images are predicted as 'green'" in found.warnings[0].message
    found = unfreeze.evaluate(changed(made.run, tmp_path / "never", never), data, split="all")
    assert codes(found) == ["class_never_predicted"]


def test_features_that_are_the_same_for_all_are_named(colour_run, tmp_path):
    data, made = colour_run

    def empty(tensors):
        for name, tensor in tensors.items():
            if name.startswith("conv") or tensor.dim() == 4:
                tensor.zero_()

    dead = changed(made.run, tmp_path / "dead", empty)
    assert codes(unfreeze.evaluate(dead, data, split="all"))[0] == "constant_features"
    how = {**TINY, "weights": dead, "epochs": 2}
    again = unfreeze.finetune(data, out=str(tmp_path / "run"), freeze="all", **how)
    assert codes(again)[:2] == ["constant_features", "nothing_learned"]
    # and a comparison says that this start did not learn, not that it cannot tell
    found = unfreeze.compare(
        data, ["none", dead], out=str(tmp_path / "cmp"), seeds=1, freeze="all", epochs=1
    )
    assert found.failed == {dead: 1} and "constant_features" in codes(found)
    assert "dead did not learn: it is no better than guessing in its run" in found.verdict
    assert "Can't tell" not in found.verdict


def test_few_images_that_choose_are_named(coloured, tmp_path):
    made = unfreeze.finetune(
        coloured("few", {"red": 10, "blue": 10}), out=str(tmp_path / "run"), **QUICK
    )
    assert made.val_images == 4 and "few_validation_images" in codes(made)


def test_pretraining_that_learns_nothing_says_so(coloured, tmp_path):
    folder = coloured("photos", {"red": 24, "blue": 24}, side=24)
    how = {"arch": "unfreeze/tiny", "size_crops": (16, 8), "nmb_crops": (2, 2), "tune": "off"}
    how |= {"min_scale_crops": (0.5, 0.3), "max_scale_crops": (1.0, 0.6)}
    how |= {"batch_size": 8, "epochs": 2, "device": "cpu", "nmb_prototypes": 8}
    made = unfreeze.pretrain(folder, out=str(tmp_path / "run"), base_lr=0.0, final_lr=0.0, **how)
    assert codes(made) == ["nothing_learned"]
    assert "The learning rate is 0" in made.warnings[0].message
    assert json.loads((tmp_path / "run/warnings.json").read_text())[0]["code"] == codes(made)[0]


def test_what_the_folders_make_doubtful_is_in_the_result(coloured, tmp_path):
    folder = coloured("cases", {"Glass": 8, "glass": 8, "metal": 8}, side=24)
    long = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 90, 3), np.uint8))
    for number in range(6):
        long.save(folder / f"metal/{number:03}.png")
    made = unfreeze.finetune(folder, out=str(tmp_path / "run"), **QUICK)
    assert {"labels_differ_by_case", "cropped_away"} <= {*codes(made)}
    found = unfreeze.evaluate(made.run, folder, split="all")
    assert {"labels_differ_by_case", "cropped_away"} <= {*codes(found)}
