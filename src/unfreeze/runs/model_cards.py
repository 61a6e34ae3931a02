"""The README.md of a run's `model/` folder, from the files of the run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unfreeze.checkpoints.model_file import ModelCard, read_card
from unfreeze.exports.model_card import README, CardEvaluation, CardMetric, model_card
from unfreeze.reports.intervals import wilson_interval
from unfreeze.runs.after_run import warn_on_failure
from unfreeze.runs.test_set_usage import run_folder
from unfreeze.runtime.atomic import write_text
from unfreeze.runtime.console import Console
from unfreeze.runtime.run_folder import RunFolder, read_metrics

EVALUATION = "evaluation.json"


def write_model_card(run: RunFolder, console: Console, *, evaluated: bool = True) -> None:
    """Write `model/README.md`; a failure is a warning, the model is complete without it.

    `evaluated`: whether the run's evaluation is of these weights.
    """
    with warn_on_failure("The model card could not be written", run, console):
        card = read_card(run.path)
        evaluation = recorded_evaluation(run.path, card) if evaluated else None
        write_text(
            run.file("model") / README, model_card(card, run.path.resolve().name, evaluation)
        )


def recorded_evaluation(model: str | Path, card: ModelCard) -> CardEvaluation | None:
    """The latest evaluation in the run of `model` (a run or its model/ folder).

    None for a model alone, or if the run has none. ValueError if the file cannot be read.
    """
    folder = run_folder(model)
    if folder is None:
        return None
    if card.kind == "backbone":
        return _knn(folder, card)
    path = folder / EVALUATION
    return _evaluated(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _evaluated(values: Mapping[str, Any]) -> CardEvaluation:
    """From evaluation.json, as `finetune` or `evaluate` wrote it."""
    return CardEvaluation(
        split=str(values["split"]),
        n=int(values["n"]),
        metrics=_of_task(values) if "metrics" in values else _of_classes(values),
        used_for_choosing=bool(values.get("used_for_choosing")),
        leaked=values.get("leaked"),
    )


def _of_task(values: Mapping[str, Any]) -> list[CardMetric]:
    intervals = values.get("intervals") or {}
    return [
        CardMetric(name, float(value), _pair(intervals.get(name)))
        for name, value in values["metrics"].items()
        if value is not None
    ]


def _of_classes(values: Mapping[str, Any]) -> list[CardMetric]:
    accuracy, n = float(values["accuracy"]), int(values["n"])
    metrics = [CardMetric("accuracy", accuracy, wilson_interval(round(accuracy * n), n))]
    balanced = _pair(values.get("balanced_interval"))
    metrics.append(CardMetric("balanced_accuracy", float(values["balanced_accuracy"]), balanced))
    return [*metrics, CardMetric("macro_f1", float(values["macro_f1"]))]


def _pair(values: Any) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]))


def _knn(folder: Path, card: ModelCard) -> CardEvaluation | None:
    """The k-NN accuracy of the features at the step of the weights, if it was measured."""
    step = card.provenance.get("steps")
    lines = [r for r in read_metrics(folder) if "knn_accuracy" in r and r.get("step") == step]
    if not lines:
        return None
    last = lines[-1]
    accuracy, right, n = last["knn_accuracy"], int(last["correct"]), int(last["total"])
    return CardEvaluation(
        split=str(last["split"]),
        n=n,
        metrics=[CardMetric("knn_accuracy", float(accuracy), wilson_interval(right, n))],
        how=", by k nearest neighbours among the features",
    )
