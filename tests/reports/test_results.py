"""What commands show at their end: the answer first, no dictionaries, files that exist."""

import json
from pathlib import Path
from types import SimpleNamespace as Fields

import pytest

from unfreeze.reports.results_data import scan_display, shown
from unfreeze.reports.results_models import evaluate_display, export_display
from unfreeze.reports.results_runs import (
    compare_display,
    demo_display,
    finetune_display,
    pretrain_display,
)
from unfreeze.runtime.display import html, text

WARNING = {"code": "nothing_learned", "message": "The loss stayed at ln 3."}


def tuned(run, **changed):
    fields = {
        "run": str(run),
        "arch": "torchvision/resnet18",
        "classes": ["cat", "dog", "owl"],
        "epochs": 30,
        "best_epoch": 12,
        "val_accuracy": 0.9,
        "val_images": 100,
        "val_interval": (0.826, 0.945),
        "parameters_trainable": 1_539,
        "parameters_frozen": 11_176_512,
        "frozen_unchanged": True,
        "weights_matched": 1.0,
        "images": 400,
        "images_per_second": 523.2,
        "seconds": 25.4,
        "model": str(run / "model"),
        "repeated": None,
        "warnings": [],
        "task": "classification",
    }
    return Fields(**{**fields, **changed})


def judged(run=None, **changed):
    fields = {
        "n": 100,
        "split": "val",
        "accuracy": 0.9,
        "interval": (0.826, 0.945),
        "balanced_accuracy": 0.9,
        "balanced_interval": (0.82, 0.95),
        "macro_f1": 0.9,
        "top5": 1.0,
        "loss": 0.3,
        "calibration_error": 0.04,
        "seen_in_training": 4,
        "used_for_choosing": True,
        "test_uses": 0,
        "epoch": 3,
        "temperature": None,
        "last": None,
        "classes": ["cat", "dog"],
        "confusion": [[45, 5], [5, 45]],
        "run": run,
        "unknown": Fields(
            reason="",
            level=0.95,
            n=100,
            answered=0.6,
            accuracy_answered=0.95,
            accuracy_answered_interval=(0.863, 0.983),
            coverage=0.94,
            coverage_interval=(0.875, 0.972),
            set_size=1.4,
        ),
    }
    return evaluate_display(Fields(**{**fields, **changed}), run)


@pytest.fixture
def run(finetuning):
    (finetuning / "report.html").write_text("<html>")
    (finetuning / "model").mkdir()
    return finetuning


def test_an_accuracy_names_split_size_interval_and_what_it_was_used_for(run):
    said = text(finetune_display(tuned(run)))
    assert said.startswith(
        "90.0 % of 100 validation images are classified correctly (95 % interval 82.6 % to "
        "94.5 %). The best epoch was selected on them: expect less on new images."
    )
    without = finetune_display(tuned(run, val_accuracy=None, val_interval=None, best_epoch=None))
    assert "the accuracy is not known" in text(without)


def test_a_transfer_ends_with_its_files_and_the_next_command(run):
    said = text(finetune_display(tuned(run)))
    assert f"report  {run}/report.html" in said and f"model   {run}/model" in said
    assert said.endswith(
        f"Next:\n  unfreeze evaluate {run} pics\n  unfreeze predict {run} IMAGE..."
    )
    (run / "report.html").unlink()
    assert "report.html" not in text(finetune_display(tuned(run)))


def test_a_notebook_shows_the_curves_that_are_there(tmp_path):
    for show in (lambda: finetune_display(tuned(tmp_path)), lambda: judged(str(tmp_path))):
        (tmp_path / "curves.png").unlink(missing_ok=True)
        assert show().plots == []
        (tmp_path / "curves.png").write_bytes(b"drawn")
        assert show().plots == [("curves", str(tmp_path / "curves.png"))]
    assert judged().plots == []  # model/ alone has no curves


def test_numbers_are_words_and_no_dictionaries(run):
    repeated = Fields(folds=5, seeds=[0, 1], n=60, accuracy=0.5667, interval=(0.441, 0.684))
    said = text(finetune_display(tuned(run, repeated=repeated)))
    assert "100 % of the backbone's parameters were loaded" in said
    assert "56.7 % of 60 images (95 % interval 44.1 % to 68.4 %; 5 folds, 2 seeds)" in said
    assert "11,176,512 are frozen and unchanged in the saved model" in said
    assert not {"{", "}", "namespace", "None"} & set(said.replace("(", " ").split())


def test_warnings_stand_before_the_facts(run):
    said = text(finetune_display(tuned(run, warnings=[WARNING])))
    assert said.index("warning: The loss stayed at ln 3.") < said.index("network")
    assert "<b>warning:</b> The loss stayed" in html(
        finetune_display(tuned(run, warnings=[WARNING]))
    )


def test_a_frozen_part_that_changed_is_loud(run):
    assert "NOT unchanged" in text(finetune_display(tuned(run, frozen_unchanged=False)))


def test_an_evaluation_is_measured_by_the_constant_answer():
    said = text(judged())
    assert said.startswith("90.0 % of 100 validation images are classified correctly (95 %")
    assert "always predicting the most frequent class would give 50.0 %" in said
    assert "epoch was selected on these images" in said and "4 of these images were in the" in said
    assert "dog (5)" in said and "top-5" not in said
    constant = judged(accuracy=0.5, confusion=[[50, 0], [50, 0]])
    assert "no better than a constant prediction" in text(constant)
    worse = judged(accuracy=0.1, confusion=[[5, 45], [45, 5]])
    assert "worse than a constant prediction" in text(worse)


def test_an_evaluation_names_what_it_wrote(run):
    for name in ("predictions.csv", "mistakes.csv"):
        (run / name).write_text("")
    said = text(judged(str(run)))
    for name in ("report.html", "predictions.csv", "mistakes.csv", "evaluation.json"):
        assert f"{run}/{name}" in said
    assert said.endswith(f"unfreeze predict {run} IMAGE...")
    assert "Next:" not in text(judged())


def pretraining_result(run, **changed):
    fields = {
        "run": str(run),
        "arch": "unfreeze/tiny",
        "epochs": 40,
        "steps": 400,
        "images": 1437,
        "processes": 1,
        "loss": 2.96,
        "images_per_second": 4000.0,
        "seconds": 267.0,
        "model": str(run / "model"),
        "kept": "last",
        "figures": {},
        "knn": None,
        "best": None,
        "continued": None,
    }
    return Fields(**{**fields, **changed})


def add(run, *records):
    with (run / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)


def look(step, information, **more):
    return {"step": step, "epoch": 0, "split": "figures", "information": information, **more}


def test_a_pretraining_says_whether_it_learned(pretraining):
    add(pretraining, look(0, 0.03, effective_rank=12.0), look(400, 0.37, effective_rank=133.6))
    made = pretraining_result(pretraining, figures={"information": 0.37, "effective_rank": 133.6})
    said = text(pretrain_display(made))
    assert said.startswith("Pretraining learned to tell images apart: the loss is")
    assert (
        "prototypes carry 37 % of the maximum information" in said
        and "(3 % before the first step)" in said
    )
    rows = [line.split() for line in said.splitlines()]
    assert ["information", "3.0", "%", "37.0", "%"] in rows
    assert ["effective", "rank", "12", "134"] in rows
    beside = f"{pretraining}-finetuned"
    assert f"finetune digits --labels LABELS.csv --weights {pretraining}" in said and beside in said


def test_a_pretraining_with_labels_is_judged_by_k_nn(pretraining):
    def knn(step, correct):
        counts = {"correct": correct, "total": 200, "knn_accuracy": correct / 200}
        return {"step": step, "split": "val", **counts}

    add(pretraining, knn(0, 60), knn(400, 120))
    good = text(pretrain_display(pretraining_result(pretraining)))
    assert good.startswith("Pretraining improved the features: k-NN accuracy on 200 validation")
    add(pretraining, knn(500, 62))
    assert "It is not clear whether" in text(pretrain_display(pretraining_result(pretraining)))
    add(pretraining, knn(600, 20))
    assert "made the features worse" in text(pretrain_display(pretraining_result(pretraining)))


def test_a_loss_at_chance_is_nothing_learned(bare):
    add(bare, {"step": 100, "split": "train", "loss": 4.158})
    said = text(pretrain_display(pretraining_result(bare)))
    assert said.startswith("Nothing was learned: the loss is 4.16, and guessing among 64")


def test_a_comparison_leads_with_its_verdict(run):
    start = Fields(weights="none", name="none", accuracy=0.5, interval=(0.2, 0.8), accuracies=[0.5])
    start.pretraining_seconds, start.seconds = 90.0, 120.0
    one = Fields(weights="none", run=str(run), best_epoch=1)
    made = Fields(starts=[start], split="val", n=1200, verdict="No.", out=str(run), runs=[one])
    made.by_labels = None
    said = text(compare_display(made))
    assert said.startswith("No.") and "20.0 % to 80.0 %" in said
    assert "1,200 validation images, on which the best epoch was selected" in " ".join(said.split())
    made.split = "test"
    assert "epoch was selected" not in text(compare_display(made))


def test_a_demo_is_a_table_of_means(demonstration):
    results = json.loads((demonstration / "demo.json").read_text())["results"]
    made = Fields(run=str(demonstration), seconds=88.2, results=results)
    said = text(demo_display(made))
    assert "96.0 ± 0.4" in said and "With 1 label per class, SwAV features classify 77.0 %" in said


def found(**changed):
    problem = {"path": "a.jpg", "reason": "two labels", "detail": "x here", "left_out": False}
    fields = {
        "data": "photos",
        "files": 12,
        "pictures": 10,
        "usable": 9,
        "other": 2,
        "problems": [problem, {**problem, "reason": "truncated", "left_out": True}],
        "rules": {"a name without a usual ending": 1},
        "decoded": 10,
        "seconds": 0.5,
        "quarantined": 0,
        "page": None,
        "table": None,
    }
    return Fields(**{**fields, **changed})


def test_a_scan_leads_with_what_can_be_used_and_goes_on_to_quarantine():
    said = text(scan_display(found()))
    assert said.startswith("9 of 10 images can be used, 1 cannot; 2 other files are ignored.")
    assert said.index("truncated") < said.index("two labels")
    assert "1 usable image would be skipped by tools that go by file extensions." in said
    assert said.endswith("unfreeze scan photos --quarantine broken")
    clean = found(usable=10, problems=[], page="scan/scan.html", table="scan/problems.csv")
    assert text(scan_display(clean)).endswith("unfreeze pretrain photos --dry-run")


def test_a_page_about_data_says_what_there_is():
    made = Fields(
        data="two words",
        out="p.html",
        images=1200,
        classes=["a", "b"],
        problems=[],
        splits={"train": 1000, "test": 200},
        counts={"a": {"train": 600, "test": 100}, "b": {"train": 400, "test": 100}},
        notes=["Largest class first."],
    )
    said = text(shown(made))
    assert said.startswith("1,200 images of 2 classes.") and "page  p.html" in said
    assert "unfreeze pretrain 'two words' --dry-run" in said


def test_an_export_says_how_far_it_is_off():
    made = Fields(
        arch="unfreeze/tiny",
        to="onnx",
        out="o",
        files=["model.onnx", "README.md"],
        classes=["a"],
        max_difference=1.2e-6,
        tolerance=1e-4,
        compared_on="16 views",
        with_preprocessing=False,
        int8=None,
        hub=None,
    )
    said = text(export_display(made))
    assert "its outputs equal the run's on 16 views (largest difference 1.2e-06" in said


def test_an_evaluation_says_what_is_answered_or_why_not():
    said = " ".join(text(judged()).split())
    assert (
        "answered 60.0 % of 100 images, 95.0 % of them correctly (95 %: 86.3 % to 98.3 %)" in said
    )
    assert "1.4 labels, with the true one for 94.0 % (95 %: 87.5 % to 97.2 %; set to 95 %)" in said
    said = text(judged(unknown=Fields(reason="The run has 4 validation images.")))
    assert "not evaluated. The run has 4 validation images." in said


@pytest.mark.parametrize("width", [60, 80])
def test_all_of_it_keeps_to_its_width(width, run, monkeypatch):
    monkeypatch.chdir(run.parent)
    here = Path(run.name)
    for display in (
        finetune_display(tuned(here, warnings=[WARNING])),
        judged(),
        scan_display(found()),
    ):
        assert max(map(len, text(display, width).splitlines())) <= width
