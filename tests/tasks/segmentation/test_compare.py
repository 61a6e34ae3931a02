"""`compare`, `--folds` and `--repeats` for tasks whose result is a metric, not an accuracy."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from tests.tasks.segmentation.test_segmentation import TINY

from unfreeze.cli.main import main
from unfreeze.commands import compare as command
from unfreeze.data.index.splits import read_split_csv
from unfreeze.errors import DataError
from unfreeze.reports.comparison import comparison_view
from unfreeze.reports.intervals import mean_over_runs
from unfreeze.runs.task_evaluation import resampled_metrics
from unfreeze.runtime.run_folder import read_metrics

FAST = [*TINY, "--image-size", "32"]


@pytest.fixture(scope="module")
def good(scenes, tmp_path_factory):
    """A run that knows the scenes: a start that must pay."""
    run = tmp_path_factory.mktemp("good") / "knows-scenes"
    words = ["--arch", "smp/unet/resnet18", "--lr", "0.003", "--epochs", "10", "--out", str(run)]
    assert main(["finetune", str(scenes), *TINY, *words]) == 0
    return run


@pytest.fixture(scope="module")
def compared(good, scenes, tmp_path_factory):
    """(folder, result): from nothing and from the good run, a frozen encoder, three seeds."""
    out = tmp_path_factory.mktemp("compared") / "c"
    words = [
        "--weights",
        "none",
        str(good),
        "--lr",
        "0.003",
        "--epochs",
        "2",
        "--seeds",
        "3",
        "--freeze",
        "all",
    ]
    options = [word for word in TINY if word not in ("--weights", "none")]
    arch = ["--arch", "smp/unet/resnet18"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "report", _of_comparisons(command.report))
        assert main(["compare", str(scenes), *options, *arch, *words, "--out", str(out)]) == 0
    return out, json.loads((out / "compare.json").read_text())


def _of_comparisons(report):
    """Pages of runs take longer than their training."""
    return lambda run: report(run) if (Path(run) / "compare.json").exists() else None


@pytest.mark.slow
def test_it_says_that_pretraining_paid(compared):
    out, result = compared
    none, ours = result["starts"]
    assert (result["task"], result["metric"], result["n"]) == ("segmentation", "miou", 8)
    assert none["value"] + 0.2 < ours["value"] and 0 <= ours["interval"][0] < ours["value"]
    (apart,) = result["differences"]
    assert apart["difference"] == pytest.approx(ours["value"] - none["value"])
    assert apart["verdict"] == "better"
    assert result["verdict"].startswith("Pretraining paid: knows-scenes's mIoU is 0.")
    page = (out / "report.html").read_text()
    assert "mIoU by initial weights" in page and "difference in mIoU" in page


@pytest.mark.slow
def test_values_are_those_of_the_runs(compared):
    out, result = compared
    for start in result["starts"]:
        runs = [run for run in result["runs"] if run["weights"] == start["weights"]]
        assert start["values"] == [run["value"] for run in runs]
        assert start["value"] == pytest.approx(np.mean(start["values"]))
        for run in runs:
            evaluation = json.loads((Path(run["run"]) / "evaluation.json").read_text())
            assert evaluation["miou"] == run["value"] == run["metrics"]["miou"]
            assert evaluation["split"] == "test" and evaluation["test_uses"] == 1
            assert run["interval"] == evaluation["interval"]
    with (out / "compare.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["miou"]) for row in rows] == [run["value"] for run in result["runs"]]


@pytest.mark.slow
def test_a_finished_comparison_is_read_not_run_again(compared, scenes, good, run_json, monkeypatch):
    out, result = compared
    monkeypatch.setattr(command, "run_finetune", _only_plans(command.run_finetune))
    monkeypatch.setattr(command, "report", lambda run: None)
    words = [
        "--weights",
        "none",
        good,
        "--lr",
        "0.003",
        "--epochs",
        "2",
        "--seeds",
        "3",
        "--freeze",
        "all",
    ]
    options = [word for word in TINY if word not in ("--weights", "none")]
    again = ["--arch", "smp/unet/resnet18", *words, "--out", out, "--resume", "auto"]
    found = run_json("compare", scenes, *options, *again)
    assert found["starts"] == result["starts"] and found["differences"] == result["differences"]


def _only_plans(run_finetune):
    def plan(settings, console, **options):
        assert settings.dry_run, "a finished run was trained again"
        return run_finetune(settings, console, **options)

    return plan


@pytest.mark.slow
def test_resamples_of_two_models_are_the_same_images(compared):
    """The paired bootstrap of a model with itself has no width; with another one it has."""
    from unfreeze.experiments.compare_task import EvaluatedTaskRun

    _, result = compared
    runs = [
        EvaluatedTaskRun.from_record({"outcome": run, "paths": []}) for run in result["runs"][:2]
    ]
    one, again, other = (
        resampled_metrics(run.task(), *run.arrays())["miou"] for run in (runs[0], runs[0], runs[1])
    )
    assert (one - again).std() == 0 and (one - other).std() > 0
    # paired: narrower than with images of its own
    alone = resampled_metrics(runs[1].task(), *runs[1].arrays(), seed=9)["miou"]
    assert (one - other).std() <= 1.1 * (one - alone).std()


def test_what_cannot_be_compared_is_refused(scenes, good, tmp_path, fails):
    out = ["--out", tmp_path / "c"]
    assert "two or more" in fails(2, "compare", scenes, "--weights", "none", *out)
    other = ["--weights", "none", good, "--arch", "smp/unet/resnet34"]
    assert "is not that of smp/unet/resnet34" in fails(4, "compare", scenes, *other, *out)
    assert not any(path.is_dir() for path in (tmp_path / "c").glob("0*"))


@pytest.mark.slow
def test_a_metric_without_a_value_gives_no_interval(compared):
    from unfreeze.experiments.compare_task import EvaluatedTaskRun, _defined

    _, result = compared
    run = EvaluatedTaskRun.from_record({"outcome": result["runs"][0], "paths": []}).outcome
    assert _defined(run, np.array([0.1, 0.2])).tolist() == [0.1, 0.2]
    with pytest.raises(DataError, match="has no value on some resamples of its 8 test images"):
        _defined(run, np.array([0.1, np.nan]))


@pytest.mark.parametrize(
    ("lower", "verdict", "sentence"),
    [
        (False, "better", "Pretraining paid: swav's mIoU is 0.050 higher than that of training"),
        (True, "worse", "Pretraining did not pay: swav's mae is 0.050 higher than that of"),
    ],
)
def test_a_smaller_error_is_better(lower, verdict, sentence):
    from unfreeze.experiments.compare import differences_of
    from unfreeze.reports.intervals import IntervalEstimate

    (apart,) = differences_of(
        ["none", "swav"],
        lambda start, than: IntervalEstimate(0.05, 0.01, 0.09, None),
        lower_is_better=lower,
    )
    assert (apart.start, apart.verdict) == ("swav", verdict)
    start = {"weights": "none", "name": "none", "value": 0.5, "interval": [0.4, 0.6]}
    start |= {"deviation": 0.01, "values": [0.49, 0.51]}
    results = {
        "starts": [start, start | {"weights": "swav", "name": "swav"}],
        "differences": [vars(apart)],
        **{"n": 8, "split": "test", "seeds": [0, 1], "same_images": True, "rates": "one"},
        **{"runs": [], "metric": "mae" if lower else "miou", "limits": [0, 1]},
        "lower_is_better": lower,
    }
    view = comparison_view(results)
    assert view.verdict[0].startswith(sentence)
    assert view.starts[0].value == "0.500" and view.starts[0].aside == "± 0.010"


def test_folds_hold_out_every_image_once(scenes, tmp_path, run_json):
    result = run_json("finetune", scenes, *FAST, "--folds", "3", "--out", tmp_path / "run")
    repeated = result["repeated"]
    assert (repeated["metric"], repeated["n"], len(repeated["runs"])) == ("miou", 16, 3)
    held = [
        {row.path for row in read_split_csv(Path(run["run"]) / "split.csv") if row.split == "val"}
        for run in repeated["runs"]
    ]
    assert len(set.union(*held)) == sum(map(len, held)) == 16
    for run, value in zip(repeated["runs"], repeated["values"], strict=True):
        last = [line for line in read_metrics(run["run"]) if line["split"] == "val"][-1]
        assert run["value_last"] == value == last["miou"] and run["images"] + run["n"] == 16
    estimate = mean_over_runs(repeated["values"], 16 / 32)
    assert repeated["value"] == pytest.approx(estimate.mean)
    assert repeated["interval"] == pytest.approx([max(0, estimate.low), min(1, estimate.high)])
    assert result["epochs"] == 2  # the run itself follows
    assert "cross-validation (3 folds" in (tmp_path / "run/report.html").read_text()


def test_repeats_judge_the_datas_own_validation_images_with_other_seeds(scenes, tmp_path, run_json):
    result = run_json("finetune", scenes, *FAST, "--repeats", "2", "--out", tmp_path / "run")
    repeated = result["repeated"]
    assert (repeated["seeds"], repeated["n"], repeated["folds"]) == ([0, 1], 6, 0)
    assert repeated["values"][0] != repeated["values"][1]


def test_too_many_folds_are_refused(scenes, tmp_path, fails):
    said = fails(3, "finetune", scenes, *FAST, "--folds", "17", "--out", tmp_path / "run")
    assert "--folds 17 is not possible: there are only 16 images" in said


def test_overlapping_training_sets_widen_the_interval():
    values = [0.5, 0.6, 0.7]
    plain, folds = mean_over_runs(values, 0.0), mean_over_runs(values, 0.5)
    assert plain.mean == folds.mean == pytest.approx(0.6)
    # Nadeau and Bengio: variance times 1/3 + 1/2 instead of 1/3
    widths = [estimate.high - estimate.mean for estimate in (plain, folds)]
    assert widths[1] / widths[0] == pytest.approx((2.5) ** 0.5)
