"""Results for people and for programs."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from unfreeze.cli.output import as_json, as_text, command_after_dry_run
from unfreeze.commands.finetune import FinetunePlan
from unfreeze.commands.predict import Predictions
from unfreeze.commands.summary import summary
from unfreeze.transfer.predictor import Prediction


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
    rows = [Prediction("a,b.jpg", "cat", 0.98765)]
    assert as_text("predict", Predictions(rows)) == 'path,label,probability\n"a,b.jpg",cat,0.9877'


def test_a_plan_was_told_while_it_was_made():
    plan = FinetunePlan({"epochs": 3}, {}, ["a"], {}, 9, 1, 1, 0, {}, {})
    assert as_text("finetune", plan) == ""


def test_a_plan_ends_with_the_command_that_does_it():
    words = ["my photos", "--dry-run", "--epochs", "3"]
    assert command_after_dry_run("finetune", words, None).endswith(
        "  unfreeze finetune 'my photos' --epochs 3 --out RUN"
    )
    assert command_after_dry_run("pretrain", ["d", "--out=r", "--dry-run"], None).endswith(
        "  unfreeze pretrain d --out=r"
    )
    assert command_after_dry_run("demo", ["--dry-run"], None).endswith("  unfreeze demo")


def test_a_result_is_text_as_wide_as_it_may_be():
    found = summary("unfreeze/tiny", input="3x16x16")
    assert as_text("summary", found) == str(found)
    narrow = as_text("summary", found, 60)
    assert max(map(len, narrow.splitlines())) <= 60 < max(map(len, str(found).splitlines()))
    assert "\x1b[1m" in as_text("summary", found, 60, colour=True)
