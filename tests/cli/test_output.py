"""Results for people and for programs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from unfreeze.api.summary import summary
from unfreeze.cli.output import as_json, as_text, table


@dataclasses.dataclass
class Inner:
    path: Path
    share: np.float32


@dataclasses.dataclass
class Outer:
    counts: np.ndarray
    rows: list[Inner]
    nothing: None = None
    loss: float = float("inf")


def test_json_knows_dataclasses_arrays_paths_and_what_is_not_finite():
    made = Outer(np.arange(3), [Inner(Path("a/b"), np.float32(0.5))])
    assert json.loads(as_json(made)) == {
        "counts": [0, 1, 2],
        "rows": [{"path": "a/b", "share": 0.5}],
        "nothing": None,
        "loss": None,
    }


def test_predictions_are_csv():
    rows = [{"path": "a,b.jpg", "label": "cat", "probability": 0.98765}]
    assert as_text("predict", rows) == 'path,label,probability\n"a,b.jpg",cat,0.9877'


def test_accuracy_names_split_size_and_interval():
    result = {
        "n": 100,
        "split": "val",
        "accuracy": 0.9,
        "interval": [0.826, 0.945],
        "top5": 1.0,
        "loss": 0.3,
        "seen_in_training": 4,
        "used_for_choosing": True,
        "classes": ["cat", "dog"],
        "confusion": [[45, 5], [5, 45]],
    }
    text = as_text("evaluate", result)
    assert "accuracy 0.900 (95 %: 0.826 to 0.945) on val, 100 images" in text
    assert "used for choosing" in text
    assert "4 of these images were seen in training" in text
    assert "dog (5)" in text


def test_accuracies_of_training_name_split_size_and_interval_too():
    tuned = {"run": "r", "val_accuracy": 0.9, "val_images": 100, "val_interval": [0.826, 0.945]}
    (line,) = [x for x in as_text("finetune", tuned).splitlines() if "accuracy" in x]
    assert "0.900 (95 %: 0.826 to 0.945) on val, 100 images, used for choosing" in line
    without = {"run": "r", "val_accuracy": None, "val_images": 0, "val_interval": None}
    assert as_text("finetune", without).splitlines()[1].split() == ["val", "accuracy", "-"]
    knn = {"accuracy": 0.9, "correct": 90, "total": 100, "split": "held-out", "at_start": 0.5}
    text = as_text("pretrain", {"run": "r", "knn": knn, "best": {"epoch": 3, "value": 0.9}})
    assert "accuracy 0.900 (95 %: 0.826 to 0.945) on held-out, 100 images" in text
    assert "epoch 3, value 0.9" in text


@pytest.mark.parametrize(("split", "chosen"), [("test", False), ("val", True)])
def test_a_comparison_names_the_pictures_behind_its_accuracies(split, chosen):
    start = {"name": "none", "accuracy": 0.5, "interval": [0.2, 0.8], "accuracies": [0.5]}
    made = {"starts": [start], "split": split, "n": 1200, "verdict": "No.", "report": "r.html"}
    text = as_text("compare", made)
    assert f"on {split}, 1,200 images" in text and ("used for choosing" in text) == chosen


def test_summary_lists_the_stages_that_freeze_counts():
    text = as_text("summary", summary("unfreeze/tiny", input="3x16x16"))
    assert "· stage 1: " in text and "· head" in text and "Total params: 308,650" in text


def test_demo_is_a_table_of_means():
    results = {"pixels": {"1": [0.614, 0.02], "10": [0.9, 0.01]}, "swav": {"1": [0.8, 0.02]}}
    results["swav"]["10"] = [0.96, 0.004]
    text = as_text(
        "demo",
        {
            "seconds": 88.2,
            "results": results,
            "report": "runs/1/report.html",
            "curves": "runs/1/curves.png",
            "prototypes": None,
        },
    )
    assert "0.960 ± 0.004" in text
    assert "runs/1/report.html" in text


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "demo"])
def test_a_plan_was_told_while_it_was_made(verb):
    assert as_text(verb, {"settings": {"epochs": 3}, "reasons": {}, "images": 9}) == ""


def test_long_values_stay_in_the_json():
    text = as_text("finetune", {"classes": [str(i) for i in range(99)], "best_epoch": None})
    assert text == "classes     99\nbest epoch  -"


@pytest.mark.parametrize("rows", [[("a", "n"), ("long name", "5"), ("b", "1,234")]])
def test_tables_are_aligned(rows):
    _head, rule, first, last = table(rows)
    assert (first, last) == ("long name      5", "b          1,234")
    assert len(rule) == 16
