"""Several labels for an image through the command line: train, evaluate, predict, export."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from tests.tasks.multilabel.conftest import COLOURS, OFTEN, TINY, write_patches, write_table

import unfreeze
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.tasks.multilabel.metrics import choose_thresholds

NAMES = sorted(COLOURS)


@pytest.fixture(scope="module")
def trained(coloured_patches, tmp_path_factory):
    """(run folder, its JSON), trained on names.csv with the task found by itself."""
    run = tmp_path_factory.mktemp("run") / "run"
    words = ["finetune", coloured_patches / "names.csv", *TINY, "--select", "metric"]
    command = [sys.executable, "-m", "unfreeze", *map(str, words), "--out", str(run), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "Several labels for an image, separated by ';'" in done.stderr
    assert "The threshold of each class has its best F1 on 24 validation images" in done.stderr
    return run, json.loads(done.stdout)


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def probabilities(rows):
    return np.array([[float(row[f"probability:{name}"]) for name in NAMES] for row in rows])


def truth(rows, column="label"):
    return np.array([[float(name in row[column].split(";")) for name in NAMES] for row in rows])


def test_it_trains_and_selects_by_map(trained):
    run, result = trained
    lines = [line for line in read_metrics(run) if line["split"] == "val"]
    best = max(lines, key=lambda line: (line["map"], -line["loss"]))
    assert (result["task"], result["classes"]) == ("multilabel", NAMES)
    assert result["best_epoch"] == best["epoch"] and result["val_map"] == best["map"] > 0.9
    assert set(lines[0]) >= {"map", "loss"} and "f1_macro" not in lines[0]
    card = json.loads((run / "model/model.json").read_text())
    assert (card["task"], card["outputs"], card["classes"]) == ("multilabel", 3, NAMES)


def test_evaluation_is_that_of_scikit_learn(trained, coloured_patches, run_json):
    run, _ = trained
    found = run_json("evaluate", run, coloured_patches / "names.csv")
    rows = rows_of(run / "predictions.csv")
    scores, labels = probabilities(rows), truth(rows)
    thresholds = np.array([found["thresholds"][name] for name in NAMES])
    assert (found["n"], found["split"], found["classes"]) == (60, "test", NAMES)
    assert found["map"] == pytest.approx(average_precision_score(labels, scores), abs=1e-3)
    predicted = scores >= thresholds
    assert found["f1_micro"] == pytest.approx(f1_score(labels, predicted, average="micro"))
    assert found["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    low, high = found["interval"]
    assert low <= found["map"] <= high
    assert [row["n"] for row in found["per_class"]] == labels.sum(axis=0).tolist()
    assert (truth(rows, "labels") == predicted).all()
    assert not found["used_for_choosing"] and found["leaked"] == 0
    assert "macro-F1" in (run / "report.html").read_text()


def test_thresholds_are_chosen_on_validation_images_alone(trained, coloured_patches, tmp_path):
    run, _ = trained
    split = {row["path"]: row["split"] for row in rows_of(run / "split.csv")}
    paths = [path for path, name in split.items() if name == "val"]
    model = unfreeze.load(run)
    images = [coloured_patches / path for path in paths]
    with torch.inference_mode():
        pixels = [model.preprocess.apply(np.asarray(_open(image))) for image in images]
        logits = model(torch.stack(pixels))
    labels = {row["path"]: row["label"] for row in rows_of(coloured_patches / "names.csv")}
    targets = truth([{"label": labels[path]} for path in paths])
    expected = choose_thresholds(logits.double().sigmoid().numpy(), targets)
    assert [t.origin for t in model.task.thresholds] == [t.origin for t in expected]
    for found, wanted in zip(model.task.thresholds, expected, strict=True):
        assert found.value == pytest.approx(wanted.value, abs=1e-5)


def test_other_images_and_labels_never_move_a_threshold(trained, coloured_patches, run_json,
                                                       tmp_path):  # fmt: skip
    run, _ = trained
    before = (run / "model/model.json").read_bytes()
    rows = rows_of(coloured_patches / "names.csv")
    wrong = [
        (coloured_patches / row["path"], "red" if number % 2 else ";", row["split"])
        for number, row in enumerate(rows)
    ]
    data = write_table(tmp_path / "wrong.csv", ("path", "label", "split"), wrong)
    found = run_json("evaluate", run, data)
    assert found["map"] < 0.9 and (run / "model/model.json").read_bytes() == before
    state = json.loads(before)["task_state"]["thresholds"]
    assert [found["thresholds"][name] for name in NAMES] == [value for value, _ in state]
    none = [row["ap"] for row in found["per_class"]]
    assert none[:2] == [None, None] and none[2] is not None  # no image is blue or green here


def test_evaluating_validation_images_is_called_choosing(trained, coloured_patches, run_json):
    found = run_json("evaluate", trained[0], coloured_patches / "names.csv", "--split", "val")
    assert found["used_for_choosing"] and found["n"] == 24


def _open(path):
    from PIL import Image

    return Image.open(path).convert("RGB")


def test_predictions_are_lists_and_tables(trained, coloured_patches, run_json, fails, capsys,
                                          tmp_path):  # fmt: skip
    run, _ = trained
    images = sorted(coloured_patches.glob("test-00*.png"))
    plain = run_json("predict", run, *images)
    every = run_json("predict", run, *images, "--probabilities")
    labels = {row["path"]: row["label"] for row in rows_of(coloured_patches / "names.csv")}
    model = unfreeze.load(run)
    limits = dict(zip(NAMES, model.task.decision_thresholds(), strict=True))
    for image, one, full in zip(images, plain, every, strict=True):
        assert set(one) == {"path", "labels"} and one["labels"] == full["labels"]
        values = [entry["probability"] for entry in one["labels"]]
        assert values == sorted(values, reverse=True)
        chosen = {name for name, p in full["probabilities"].items() if p >= limits[name]}
        assert {entry["label"] for entry in one["labels"]} == chosen
        assert chosen == {name for name in labels[image.name].split(";") if name}
    found = [[entry["label"] for entry in row["labels"]] for row in plain]
    assert [[e["label"] for e in row["labels"]] for row in model.predict(images)] == found
    table = tmp_path / "p.csv"
    assert main("predict", run, *images, "--probabilities", "--out", table) == 0
    rows = rows_of(table)
    assert list(rows[0]) == ["path", "labels", "probability"] + [f"probability:{n}" for n in NAMES]
    assert [row["labels"] for row in rows] == [";".join(names) for names in found]
    capsys.readouterr()
    assert main("predict", run, images[0]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "path,labels,probability"
    for words in (["--top", "2"], ["--sort-into", tmp_path / "s"], ["--explain", tmp_path / "e"]):
        assert "is for classification" in fails(2, "predict", run, *images, *words)


def main(*words):
    from unfreeze.cli.main import main as command

    return command([*map(str, words)])


@pytest.mark.slow
def test_columns_train_what_names_train(trained, coloured_patches, run_json, tmp_path):
    run, result = trained
    words = ["finetune", coloured_patches / "columns.csv", *TINY, "--select", "metric"]
    other = run_json(*words, "--label-columns", "red,green,blue", "--out", tmp_path / "run")
    assert other["val_metrics"] == result["val_metrics"] and other["classes"] == NAMES
    table, names = coloured_patches / "columns.csv", coloured_patches / "names.csv"
    found = run_json("evaluate", tmp_path / "run", table)
    assert found["map"] == run_json("evaluate", run, table, "--label-columns", "blue,red,green")[
        "map"
    ]  # fmt: skip
    assert found["map"] == run_json("evaluate", tmp_path / "run", names, "--label-separator", ";")[
        "map"
    ]  # fmt: skip
    some = run_json("evaluate", run, table, "--label-columns", "red")
    assert [row["unknown"] for row in some["per_class"]] == [60, 60, 0]
    assert some["map"] == some["per_class"][2]["ap"]


@pytest.mark.parametrize("form", ["onnx", "torchscript", "safetensors"])
def test_it_is_exported_with_classes_and_thresholds(trained, run_json, tmp_path, form):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    run, _ = trained
    result = run_json("export", run, "--to", form, "--out", tmp_path / "out")
    assert result["matched"] and result["classes"] == NAMES and result["kind"] == "predictor"
    about = json.loads((tmp_path / "out/export.json").read_text())
    state = json.loads((run / "model/model.json").read_text())["task_state"]["thresholds"]
    assert about["thresholds"] == [value for value, _ in state]


def test_int8_is_refused(trained, tmp_path):
    with pytest.raises(unfreeze.errors.UsageError, match="classifiers of images"):
        unfreeze.export(str(trained[0]), "onnx", str(tmp_path / "out"), int8=True)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("form", [pytest.param("onnx", marks=pytest.mark.slow), "torchscript"])
def test_the_lines_of_the_readme_predict_what_predict_does(
    trained, coloured_patches, run_json, tmp_path, form, inside
):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    run, out = trained[0], tmp_path / "out"
    more = ["--with-preprocessing"] if inside else []
    assert run_json("export", run, "--to", form, "--out", out, *more)["matched"]
    readme = (out / "README.md").read_text()
    lines = readme.partition("```python\n")[2].partition("```")[0]
    image = next(
        coloured_patches / row["path"]
        for row in rows_of(coloured_patches / "names.csv")
        if row["split"] == "test" and row["label"].count(";") and row["label"] != ";"
    )
    (out / "image.jpg").write_bytes(image.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=out, check=True, capture_output=True, text=True
    )
    (predicted,) = run_json("predict", run, image)
    expected = {entry["label"]: entry["probability"] for entry in predicted["labels"]}
    assert eval(done.stdout) == pytest.approx(expected, abs=1e-4) and len(expected) > 1


def test_the_validation_set_keeps_label_shares_and_groups(coloured_patches, run_json, tmp_path):
    rows = rows_of(coloured_patches / "names.csv")
    table = [
        (coloured_patches / row["path"], row["label"], int(row["path"][6:9]) // 4)
        for row in rows
        if row["split"] == "train"
    ]
    data = write_table(tmp_path / "g.csv", ("path", "label", "group"), table)
    words = [*TINY, "--epochs", "1", "--out", tmp_path / "run"]
    run_json("finetune", data, "--task", "multilabel", *words)
    split = rows_of(tmp_path / "run/split.csv")
    sides = {}
    group_of = {str(path): group for path, _, group in table}
    for row in split:
        path = next(full for full in group_of if full.endswith(row["path"].rpartition("/")[2]))
        sides.setdefault(group_of[path], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    parts = {side: truth([r for r in split if r["split"] == side]) for side in ("train", "val")}
    assert len(parts["val"]) == pytest.approx(24, abs=4)
    assert parts["val"].mean(axis=0) == pytest.approx(parts["train"].mean(axis=0), abs=0.08)


def test_without_validation_images_labels_are_predicted_from_a_half(
    coloured_patches, run_json, tmp_path
):
    words = [*TINY, "--epochs", "1", "--val", "0", "--out", tmp_path / "run"]
    result = run_json("finetune", coloured_patches / "names.csv", *words)
    assert result["best_epoch"] is None
    found = run_json("evaluate", tmp_path / "run", coloured_patches / "names.csv")
    assert set(found["thresholds"].values()) == {0.5}
    assert {row["threshold_from"] for row in found["per_class"]} == {"default"}


def test_options_of_training(coloured_patches, run_json, fails, tmp_path):
    words = ["finetune", coloured_patches / "own-val.csv", *TINY, "--epochs", "2"]
    options = ["--loss", "asymmetric", "--class-weights", "sqrt"]
    more = ["--ema", "0.5", "--select", "metric", "--label-fraction", "0.5"]
    result = run_json(*words, *options, *more, "--out", tmp_path / "run")
    assert result["val_images"] == 40 and 0 < result["val_map"] <= 1
    state = json.loads((tmp_path / "run/model/model.json").read_text())["task_state"]
    assert state["loss"] == "asymmetric" and len(state["weights"]) == 3
    for option in (["--mixup", "0.2"], ["--labels-per-class", "3"], ["--label-smoothing", "0.1"]):
        assert "multilabel has no" in fails(2, *words, *option, "--out", tmp_path / "x")
    said = fails(2, *words, "--task", "classification", "--loss", "bce", "--out", tmp_path / "x")
    assert "--loss is for --task multilabel or segmentation" in said
    said = fails(3, *words, "--task", "classification", "--out", tmp_path / "x")
    assert "finetune --task multilabel" in said


def test_balanced_sampling_draws_the_rarest_label_as_often(coloured_patches, run_json, tmp_path):
    from unfreeze.runs.finetuning import build

    orders = []
    kept = build.class_balanced_order

    def watched(groups, seed):
        orders.append(kept(groups, seed))
        return orders[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "class_balanced_order", watched)
        words = [*TINY, "--epochs", "1", "--sampling", "balanced", "--out", tmp_path / "run"]
        run_json("finetune", coloured_patches / "own-val.csv", *words)
    rows = [row for row in rows_of(tmp_path / "run/split.csv") if row["split"] == "train"]
    labels = truth(rows)
    drawn = labels[orders[0](0)]
    red = NAMES.index("red")
    assert len(drawn) == len(rows) == 80
    # blue, green, red and none each have a quarter; red is the rarest of an image that has it
    assert drawn[:, red].sum() == 20 > labels[:, red].sum()


def test_folds_hold_each_image_out_once_and_start_alike(coloured_patches, run_json, tmp_path):
    words = [*TINY, "--epochs", "2", "--folds", "3", "--out", tmp_path / "run"]
    result = run_json("finetune", coloured_patches / "names.csv", *words)
    repeated = result["repeated"]
    assert repeated["metric"] == "map" and sum(run["n"] for run in repeated["runs"]) == 120
    held = [
        {r["path"] for r in rows_of(tmp_path / f"run/folds/seed-0-fold-{k}/split.csv")
         if r["split"] == "val"}
        for k in (1, 2, 3)
    ]  # fmt: skip
    assert len(set.union(*held)) == 120
    # thresholds of one fold are not those with which another trains
    for folder in (tmp_path / "run", tmp_path / "run/folds/seed-0-fold-3"):
        assert all("f1_macro" not in line for line in read_metrics(folder))


@pytest.mark.slow
def test_compare_goes_by_map(coloured_patches, trained, run_json, tmp_path):
    words = ["compare", coloured_patches / "names.csv", "--weights", "none", trained[0]]
    plain = [*TINY[:2], *TINY[4:], "--epochs", "2", "--seeds", "2"]
    result = run_json(*words, *plain, "--task", "multilabel", "--out", tmp_path / "c")
    assert (result["task"], result["metric"]) == ("multilabel", "map")
    assert len(result["runs"]) == 4 and result["limits"] == [0, 1]
    assert all(0 <= start["interval"][0] <= start["value"] for start in result["starts"])


def test_other_commands_take_its_model(trained, coloured_patches, run_json, tmp_path):
    run, _ = trained
    out = tmp_path / "f.npz"
    run_json("embed", run, coloured_patches / "names.csv", "--out", out)
    with np.load(out) as arrays:
        assert arrays["features"].shape[0] == 180
    assert run_json("summary", run)["parameters_total"] > 0
    assert run_json("report", run)
    page = (run / "report.html").read_text()
    assert "chosen for" in page and "mAP" in page


def test_a_rare_label_stays_in_train_and_is_undefined_in_val(coloured_patches, run_json, tmp_path):
    rows = write_patches(tmp_path / "d", {"train": 40}, seed=3)
    table = [
        (f"d/{path}", ";".join([*names, *(["odd"] if number == 7 else [])]) or ";")
        for number, (path, names, _) in enumerate(rows)
    ]
    data = write_table(tmp_path / "l.csv", ("path", "label"), table)
    words = [*TINY, "--epochs", "1", "--task", "multilabel", "--out", tmp_path / "run"]
    result = run_json("finetune", data, *words)
    assert result["classes"] == sorted([*OFTEN, "odd"])
    odd = [row["split"] for row in rows_of(tmp_path / "run/split.csv") if "odd" in row["label"]]
    assert odd == ["train"]
    found = json.loads((tmp_path / "run/evaluation.json").read_text())
    per_class = {row["name"]: row for row in found["per_class"]}
    assert per_class["odd"]["ap"] is None and per_class["odd"]["threshold_from"] != "own"
    assert 0 < found["metrics"]["map"] <= 1
