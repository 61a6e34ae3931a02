"""Classification metrics: pure functions of logits and labels."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from unfreeze.evaluation.calibration import CalibrationBin, calibration_bins, calibration_error
from unfreeze.tasks.supervised import SupervisedTask

Counts = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """Image count, precision, recall and F1 of one class (None: undefined)."""

    name: str
    n: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclasses.dataclass(frozen=True)
class ClassificationMetrics:
    """Metrics over N labelled images; `confusion` has true classes in rows, predicted in columns.

    `balanced_accuracy`: mean recall over the classes present. `macro_f1`: mean F1 over the classes
    present or predicted. `calibration_error`: see the function of that name, over the bins of
    `calibration`. `right`: per image, whether the prediction is correct.
    """

    n: int
    correct: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    top5: float
    loss: float
    calibration_error: float
    calibration: list[CalibrationBin]
    confusion: list[list[int]]
    per_class: list[ClassMetrics]
    right: npt.NDArray[np.bool_] = dataclasses.field(compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the per-image ones."""
        values = dataclasses.asdict(self)
        del values["right"]
        return values

    def record(self) -> dict[str, Any]:
        """The values of a validation line of metrics.jsonl."""
        return {
            "accuracy": self.accuracy,
            "correct": self.correct,
            "total": self.n,
            "loss": self.loss,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
        }

    def accuracy_of(self, some: npt.NDArray[np.bool_]) -> float | None:
        """Accuracy over the images of the mask `some` [N]; None if it is empty."""
        return float(self.right[some].mean()) if some.any() else None


@dataclasses.dataclass(frozen=True)
class TaskMetrics:
    """Metrics of another task over N images: `values` by name, and the mean loss."""

    n: int
    loss: float
    values: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"n": self.n, **self.values, "loss": self.loss}

    def record(self) -> dict[str, Any]:
        """The values of a validation line of metrics.jsonl."""
        return {**self.values, "total": self.n, "loss": self.loss}


Scores = ClassificationMetrics | TaskMetrics


def task_metrics(task: SupervisedTask, outputs: Tensor, targets: Tensor) -> TaskMetrics:
    """Metrics of a task for what it keeps of outputs [N, ...] and targets [N, ...], N >= 1."""
    values = {name: float(value) for name, value in task.metrics(outputs, targets).items()}
    return TaskMetrics(len(outputs), task.mean_loss(outputs, targets), values)


def classification_metrics(
    logits: Tensor, labels: Tensor, classes: Sequence[str]
) -> ClassificationMetrics:
    """Metrics of logits [N, C] and labels [N] in 0..C-1, N >= 1, in the order of `classes`.

    `loss`: mean cross-entropy in nats. `top5`: top-5 accuracy (top-C with fewer classes).
    """
    logits, labels = logits.double(), labels.long()
    predicted = logits.argmax(dim=1)
    table = confusion(predicted, labels, len(classes))
    n, correct = len(labels), int(table.trace())
    top = logits.topk(min(5, len(classes)), dim=1).indices
    per_class = _per_class(table, classes)
    bins = calibration_bins(logits.softmax(dim=1), labels)
    return ClassificationMetrics(
        n=n,
        correct=correct,
        accuracy=correct / n,
        balanced_accuracy=_mean([entry.recall for entry in per_class]),
        macro_f1=_mean([entry.f1 for entry in per_class]),
        top5=float((top == labels[:, None]).any(dim=1).double().mean()),
        loss=float(functional.cross_entropy(logits, labels)),
        calibration_error=calibration_error(bins),
        calibration=bins,
        confusion=table.tolist(),
        per_class=per_class,
        right=(predicted == labels).cpu().numpy(),
    )


def confusion(predicted: Tensor, labels: Tensor, count: int) -> Counts:
    """Confusion matrix [C, C]: true classes in rows, predicted classes in columns."""
    pairs = labels.cpu().numpy().astype(np.int64) * count + predicted.cpu().numpy()
    return np.bincount(pairs, minlength=count * count).reshape(count, count)


def _per_class(table: Counts, classes: Sequence[str]) -> list[ClassMetrics]:
    truth, predicted, hits = table.sum(axis=1), table.sum(axis=0), table.diagonal()
    return [
        ClassMetrics(
            name,
            int(truth[c]),
            _ratio(hits[c], predicted[c]),
            _ratio(hits[c], truth[c]),
            _ratio(2 * hits[c], truth[c] + predicted[c]),
        )
        for c, name in enumerate(classes)
    ]


def _ratio(part: np.int64, total: np.int64) -> float | None:
    return float(part / total) if total else None


def _mean(values: list[float | None]) -> float:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined)
