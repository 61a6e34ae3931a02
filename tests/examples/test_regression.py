"""The example task of docs/EXTENDING.md, through the command line: a number for each image."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unfreeze
from unfreeze.cli.main import main
from unfreeze.config import plugins
from unfreeze.reports.charts import panels
from unfreeze.reports.run_reader import read_run
from unfreeze.runtime.distributed import Distributed, init_distributed
from unfreeze.runtime.run_folder import read_metrics

PACKAGE = Path(__file__).parents[2] / "examples" / "regression"
TINY = [
    *("--task", "regression", "--arch", "unfreeze/tiny", "--weights", "none", "--augment", "none"),
    *("--device", "cpu", "--precision", "fp32", "--batch-size", "16", "--epochs", "6"),
]
FROZEN = ["--freeze", "regex:^(stem|stage1|stage2)", "--cache", "activations"]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The folder with the package as pip would install it, on the path of this process."""
    site = tmp_path / "site"
    info = site / "unfreeze_regression-0.1.dist-info"
    info.mkdir(parents=True)
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{k} = {v}" for k, v in project["entry-points"]["unfreeze.tasks"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[unfreeze.tasks]", *lines, ""]))
    source = (PACKAGE / "unfreeze_regression.py").read_text()
    (site / "unfreeze_regression.py").write_text(source)
    monkeypatch.syspath_prepend(str(site))
    plugins.registered.cache_clear()
    yield site
    plugins.registered.cache_clear()


@pytest.fixture
def discs(tmp_path):
    """A CSV of 120 images of a disc, and its diameter in half pixels; 30 of them are the test."""
    draw, folder, rows = np.random.default_rng(0), tmp_path / "discs", []
    folder.mkdir()
    y, x = np.mgrid[:24, :24]
    for number in range(120):
        diameter = draw.uniform(3, 20)
        pixels = draw.integers(0, 60, (24, 24, 3)).astype(np.uint8)
        centre = draw.uniform(9, 15, 2)
        inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (diameter / 2) ** 2
        pixels[inside] = draw.integers(150, 255, 3)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
        split = "test" if number >= 90 else "train"
        rows.append((f"{number:03}.png", f"{2 * diameter:.3f}", split))
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    return folder / "labels.csv"


def run_json(capsys, *words):
    capsys.readouterr()
    code = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def weights(run):
    return torch.load(Path(run, "checkpoints/last.ckpt"), weights_only=True)["model"]


def test_the_example_is_short_and_listed(installed, capsys):
    assert len((PACKAGE / "unfreeze_regression.py").read_text().splitlines()) < 120
    assert main(["finetune", "--help"]) == 0
    assert "regression" in capsys.readouterr().out


def test_it_trains_and_every_command_uses_its_model(installed, discs, tmp_path, capsys):
    run = tmp_path / "run"
    result = run_json(
        capsys, "finetune", discs, *TINY, "--epochs", "12", "--select", "metric", "--out", run
    )
    lines = [line for line in read_metrics(run) if line["split"] == "val"]
    best = min(lines, key=lambda line: (line["mae"], line["loss"]))
    assert result["task"] == "regression" and result["classes"] == []
    assert result["best_epoch"] == best["epoch"] and result["val_metrics"]["mae"] == best["mae"]
    assert result["val_accuracy"] is None and 10 < result["val_images"] <= 20
    card = json.loads((run / "model/model.json").read_text())
    assert (card["task"], card["outputs"], card["classes"]) == ("regression", 1, [])

    with discs.open() as stream:
        rows = list(csv.DictReader(stream))
    test = {r["path"]: float(r["label"]) for r in rows if r["split"] == "test"}
    files = [discs.parent / name for name in test]
    evaluated = run_json(capsys, "evaluate", run, discs)
    predicted = run_json(capsys, "predict", run, *files)
    values = np.array([p["value"] for p in predicted])
    errors = np.abs(values - np.array(list(test.values())))
    assert evaluated["n"] == 30 and evaluated["split"] == "test"
    assert evaluated["metrics"]["mae"] == pytest.approx(errors.mean(), rel=1e-4)
    low, high = evaluated["intervals"]["mae"]
    assert low < evaluated["metrics"]["mae"] < high
    assert evaluated["metrics"]["r2"] > 0.3  # it has learned something: 0 is the mean
    with (run / "predictions.csv").open() as stream:
        written = {r["path"]: float(r["value"]) for r in csv.DictReader(stream)}
    assert [written[name] for name in test] == pytest.approx(values.tolist(), rel=1e-5)
    model = unfreeze.load(run)
    assert model.predict(str(files[0]))[0]["value"] == pytest.approx(values[0], rel=1e-5)

    for words in (
        ["embed", run, discs, "--out", tmp_path / "features.npz"],
        ["inspect", run / "checkpoints/last.ckpt"],
        ["summary", run],
        ["report", run],
    ):
        run_json(capsys, *words)
    page = (run / "report.html").read_text()
    assert f"mae {evaluated['metrics']['mae']:.4g} (95 % interval" in page
    titles = [panel.title for panel in panels(read_run(run))]
    assert titles == ["Loss", "mae (val)", "rmse (val)", "r2 (val)", "Learning rate"]
    assert main(["predict", str(run), str(files[0]), "--out", str(tmp_path / "p.csv")]) == 0
    assert (tmp_path / "p.csv").read_text().startswith("path,value")
    assert main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "o")]) == 2
    assert "task regression cannot be exported" in capsys.readouterr().err


def test_frozen_layers_stay_and_their_features_are_cached(installed, discs, tmp_path, capsys):
    cached = run_json(capsys, "finetune", discs, *TINY, *FROZEN, "--out", tmp_path / "cached")
    plain = run_json(
        capsys, "finetune", discs, *TINY, *FROZEN[:2], "--cache", "off", "--out", tmp_path / "plain"
    )
    assert cached["frozen_unchanged"] is True and plain["frozen_unchanged"] is True
    one, other = weights(cached["run"]), weights(plain["run"])
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
    head = run_json(capsys, "finetune", discs, *TINY, "--freeze", "all", "--out", tmp_path / "head")
    assert head["frozen_unchanged"] is True and head["parameters_trainable"] < 500


def test_validation_has_small_and_large_targets(installed, discs, tmp_path, capsys):
    run = run_json(capsys, "finetune", discs, *TINY, "--epochs", "1", "--out", tmp_path / "run")
    with Path(run["run"], "split.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    held = sorted(float(r["label"]) for r in rows if r["split"] == "val")
    known = sorted(float(r["label"]) for r in rows)
    for quarter in range(4):
        low, high = (
            known[min(len(known) - 1, k * len(known) // 4)] for k in (quarter, quarter + 1)
        )
        assert sum(low <= value <= high for value in held) >= 2


def test_a_metric_that_is_undefined_is_said_and_shown(installed, discs, tmp_path, capsys):
    """All test labels are equal: R2 divides by their variance."""
    run = tmp_path / "run"
    run_json(capsys, "finetune", discs, *TINY, "--epochs", "1", "--out", run)
    discs.write_text(re.sub(r",[0-9.]+,test", ",7.0,test", discs.read_text()))
    assert main(["evaluate", str(run), str(discs), "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["metrics"]["r2"] is None and result["intervals"]["r2"] is None
    assert "undefined_metric" in [warning["code"] for warning in result["warnings"]]
    assert "could not be written" not in captured.err
    assert json.loads((run / "evaluation.json").read_text())["metrics"]["r2"] is None
    assert "r2 undefined" in (run / "report.html").read_text()


@pytest.mark.parametrize("flags", [["--weights-of", "last"], ["--temperature", "fit"]])
def test_an_evaluation_refuses_what_is_for_classification(
    installed, discs, tmp_path, capsys, flags
):
    run = tmp_path / "run"
    run_json(capsys, "finetune", discs, *TINY, "--epochs", "1", "--out", run)
    assert main(["evaluate", str(run), str(discs), *flags]) == 2
    assert "is for classification." in capsys.readouterr().err


def test_a_dry_run_of_a_resume_plans_the_whole_run(installed, discs, tmp_path, capsys):
    run = tmp_path / "run"
    run_json(capsys, "finetune", discs, *TINY, "--out", run)
    words = ["finetune", discs, "--out", run, "--resume", "--dry-run"]
    assert run_json(capsys, *words)["images"] > 60


def test_a_file_of_somebody_else_is_not_written_over(installed, discs, tmp_path, capsys):
    run = tmp_path / "run"
    run_json(capsys, "finetune", discs, *TINY, "--epochs", "1", "--out", run)
    (run / "predictions.csv").write_text("path,age\na.png,3\n")
    assert main(["evaluate", str(run), str(discs)]) == 2
    assert (run / "predictions.csv").read_text() == "path,age\na.png,3\n"


@pytest.mark.slow
def test_folds_and_compare_know_that_a_smaller_error_is_better(installed, discs, tmp_path, capsys):
    at = TINY.index("--weights")
    tiny, good_at_it = [*TINY[:at], *TINY[at + 2 :]], ["--epochs", "25"]
    result = run_json(
        capsys, "finetune", discs, *TINY, "--folds", "3", *good_at_it, "--out", tmp_path / "good"
    )
    repeated = result["repeated"]
    assert (repeated["metric"], repeated["n"], len(repeated["values"])) == ("mae", 90, 3)
    assert repeated["interval"][0] < repeated["value"] < repeated["interval"][1]
    words = ["--weights", "none", tmp_path / "good", "--epochs", "12", "--freeze", "all"]
    found = run_json(
        capsys, "compare", discs, *tiny, *words, "--seeds", "3", "--out", tmp_path / "c"
    )
    none, good = found["starts"]
    assert (found["metric"], found["lower_is_better"], found["n"]) == ("mae", True, 30)
    assert good["value"] < none["value"]
    (apart,) = found["differences"]
    assert apart["verdict"] == "better" and apart["interval"][1] < 0
    assert "good's mae is" in found["verdict"] and "lower than that of" in found["verdict"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--mixup", "0.2"], "The task regression has no --mixup 0.2."),
        (["--sampling", "balanced"], "has no --sampling balanced"),
        (["--labels-per-class", "3"], "has no --labels-per-class 3"),
        (["--select", "macro-f1"], "has no --select macro-f1"),
        (["--head-solver", "logistic"], "has no --head-solver logistic"),
    ],
)
def test_what_needs_classes_is_refused(installed, discs, tmp_path, capsys, words, sentence):
    assert main(["finetune", str(discs), *TINY, *words, "--out", str(tmp_path / "run")]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_metric_named_accuracy_is_not_that_of_classification(installed, discs, tmp_path, capsys):
    module = installed / "unfreeze_regression.py"
    module.write_text(module.read_text().replace('"r2":', '"accuracy":'))
    sys.modules.pop("unfreeze_regression", None)
    words = ["finetune", str(discs), *TINY, "--out", str(tmp_path / "run")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "mae" in shown and "classified" not in shown
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["val_accuracy"] is None and "accuracy" in result["val_metrics"]
    page = (tmp_path / "run/report.html").read_text()
    assert "mae" in page and "classifies" not in page
    sys.modules.pop("unfreeze_regression")


def test_a_label_that_is_no_number_and_a_task_that_is_not_there(installed, discs, tmp_path, capsys):
    discs.write_text(re.sub(r"(000.png,)[^,]*", r"\1big", discs.read_text()))
    words = ["finetune", str(discs), *TINY, "--out", str(tmp_path / "run")]
    assert main(words) == 3
    assert "A label is no number" in capsys.readouterr().err
    words[words.index("regression")] = "depth"
    assert main(words) == 2
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "return F.smooth_l1_loss": ("return F.smooth_l1_loss(outputs[:, 0], targets) #", "returned ()"),
    '"mae": float': ('"MAE": float', "metrics() has no 'mae'"),
    "square = float": ("square = undefined", "unfreeze_regression.py, line"),
    'return [{"value"': ('return [{"path"', "a prediction cannot have a `path`"),
    'return {"mean": self.mean': ('return {"mean": {self.mean}', "is not JSON serializable"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_the_class_is_named_before_training(installed, discs, tmp_path, capsys, text):
    module = installed / "unfreeze_regression.py"
    instead, sentence = MISTAKES[text]
    assert text in module.read_text()
    module.write_text(module.read_text().replace(text, instead))
    sys.modules.pop("unfreeze_regression", None)
    assert main(["finetune", str(discs), *TINY, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Internal error" not in error
    assert not (tmp_path / "run").exists()
    sys.modules.pop("unfreeze_regression")


def test_a_resumed_run_has_the_task_of_its_checkpoint(
    installed, discs, tmp_path, capsys, monkeypatch, stopped_after
):
    """`fit` may depend on more than the labels; a run continues with what it began with."""
    words = ["finetune", discs, *TINY]
    straight = run_json(capsys, *words, "--out", tmp_path / "straight")
    with stopped_after(9):
        assert main([*map(str, words), "--out", str(tmp_path / "run")]) == 130
    module = sys.modules["unfreeze_regression"]
    monkeypatch.setattr(module.Regression, "fit", lambda self, labels: pytest.fail("again"))
    resumed = run_json(capsys, *words, "--out", tmp_path / "run", "--resume")
    assert resumed["val_metrics"] == straight["val_metrics"]
    one, other = weights(straight["run"]), weights(resumed["run"])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_package_that_is_broken_is_named(installed, discs, tmp_path, capsys):
    entry = installed / "unfreeze_regression-0.1.dist-info/entry_points.txt"
    entry.write_text("[unfreeze.tasks]\nfinetune.regression = unfreeze_regression:_numbers\n")
    assert main(["finetune", str(discs), *TINY, "--out", str(tmp_path / "run")]) == 2
    assert "is no subclass of unfreeze.tasks.SupervisedTask." in capsys.readouterr().err


def command(site, *words):
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return {
        "args": [sys.executable, "-m", "unfreeze", *map(str, words)],
        "env": {**os.environ, "PYTHONPATH": path},
        "text": True,
        "stderr": subprocess.PIPE,
        "stdout": subprocess.PIPE,
    }


@pytest.mark.slow
def test_killed_and_resumed_is_straight_to_the_bit(installed, discs, tmp_path):
    words = ["finetune", discs, *TINY, "--epochs", "30", "--checkpoint-every", "1"]
    straight = subprocess.run(**command(installed, *words, "--out", tmp_path / "straight"))
    assert straight.returncode == 0, straight.stderr
    killed = tmp_path / "killed"
    process = subprocess.Popen(**command(installed, *words, "--out", killed))
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        records = read_metrics(killed) if (killed / "metrics.jsonl").exists() else []
        if max((r["step"] for r in records if r["split"] == "train"), default=0) >= 20:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = subprocess.run(**command(installed, *words, "--out", killed, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert 5 <= int(re.search(r"Resuming from step (\d+)", resumed.stderr)[1]) < 150
    one, other = weights(tmp_path / "straight"), weights(killed)
    assert all(torch.equal(one[name], other[name]) for name in one)


def tuned(rank, site, data, out):
    if str(site) not in sys.path:
        sys.path.insert(0, str(site))
    plugins.registered.cache_clear()
    world = Distributed() if rank is None else init_distributed("cpu")
    freeze = "regex:^(stem|stage1|stage2|stage3)"  # batch norms would be synchronised in float32
    given = {"arch": "unfreeze/tiny", "weights": "none", "augment": "none", "freeze": freeze}
    given |= {"task": "regression", "batch_size": 16, "epochs": 2, "device": "cpu"}
    given |= {"precision": "fp32"}
    result = unfreeze.finetune(str(data), out=str(out), **given)
    return world.world, result.val_metrics["mae"]


@pytest.mark.slow
def test_two_processes_equal_one(installed, discs, tmp_path, processes):
    _, alone = tuned(None, installed, discs, tmp_path / "one")
    (world, together), _ = processes(2, tuned, installed, discs, tmp_path / "two")
    assert world == 2 and together == pytest.approx(alone, rel=1e-4)
    one, other = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
