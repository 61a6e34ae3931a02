"""How good class scores are: pure functions of logits and labels."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from unfreeze.transfer.calibration import Bin, calibration_bins, calibration_error

Counts = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """One class: how many images, precision, recall and F1 (None: there is nothing to count)."""

    name: str
    n: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores over N labelled images; `confusion` has truth in rows and prediction in columns.

    `balanced_accuracy`: the mean recall of the classes that are there. `macro_f1`: the mean F1 of
    the classes that are there or were predicted. `calibration_error`: see `calibration_error`,
    over the bins of `calibration`. `right`: which images were, in their order.
    """

    n: int
    correct: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    top5: float
    loss: float
    calibration_error: float
    calibration: list[Bin]
    confusion: list[list[int]]
    per_class: list[ClassScore]
    right: npt.NDArray[np.bool_] = dataclasses.field(compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without those of each image."""
        found = dataclasses.asdict(self)
        del found["right"]
        return found

    def accuracy_of(self, some: npt.NDArray[np.bool_]) -> float | None:
        """The share of `some` of the images that were right; None where there are none."""
        return float(self.right[some].mean()) if some.any() else None


def score(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Scores:
    """Scores of logits [N, C] against labels [N] in 0..C-1, N >= 1, in the order of `classes`.

    `loss` is the mean cross-entropy in nats; `top5` counts five classes, or all where fewer exist.
    """
    logits, labels = logits.double(), labels.long()
    predicted = logits.argmax(dim=1)
    table = confusion(predicted, labels, len(classes))
    n, correct = len(labels), int(table.trace())
    best = logits.topk(min(5, len(classes)), dim=1).indices
    per_class = _per_class(table, classes)
    bins = calibration_bins(logits.softmax(dim=1), labels)
    return Scores(
        n=n,
        correct=correct,
        accuracy=correct / n,
        balanced_accuracy=_mean([one.recall for one in per_class]),
        macro_f1=_mean([one.f1 for one in per_class]),
        top5=float((best == labels[:, None]).any(dim=1).double().mean()),
        loss=float(functional.cross_entropy(logits, labels)),
        calibration_error=calibration_error(bins),
        calibration=bins,
        confusion=table.tolist(),
        per_class=per_class,
        right=(predicted == labels).cpu().numpy(),
    )


def confusion(predicted: Tensor, labels: Tensor, count: int) -> Counts:
    """Counts [C, C]: rows are the truth, columns the prediction."""
    pairs = labels.cpu().numpy().astype(np.int64) * count + predicted.cpu().numpy()
    return np.bincount(pairs, minlength=count * count).reshape(count, count)


def _per_class(table: Counts, classes: Sequence[str]) -> list[ClassScore]:
    truth, predicted, hits = table.sum(axis=1), table.sum(axis=0), table.diagonal()
    return [
        ClassScore(
            name,
            int(truth[c]),
            _share(hits[c], predicted[c]),
            _share(hits[c], truth[c]),
            _share(2 * hits[c], truth[c] + predicted[c]),
        )
        for c, name in enumerate(classes)
    ]


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None


def _mean(values: list[float | None]) -> float:
    there = [value for value in values if value is not None]
    return sum(there) / len(there)
