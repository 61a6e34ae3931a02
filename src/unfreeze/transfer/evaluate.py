"""How good class scores are: pure functions of logits and labels."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

Counts = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """One class: how many pictures, precision and recall (None where there is nothing to count)."""

    name: str
    n: int
    precision: float | None
    recall: float | None


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores over N labelled pictures; `confusion` has truth in rows and prediction in columns."""

    n: int
    correct: int
    accuracy: float
    top5: float
    loss: float
    confusion: list[list[int]]
    per_class: list[ClassScore]


def score(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Scores:
    """Scores of logits [N, C] against labels [N] in 0..C-1, N >= 1, in the order of `classes`.

    `loss` is the mean cross-entropy in nats; `top5` counts five classes, or all where fewer exist.
    """
    logits, labels = logits.double(), labels.long()
    table = confusion(logits.argmax(dim=1), labels, len(classes))
    n, correct = len(labels), int(table.trace())
    best = logits.topk(min(5, len(classes)), dim=1).indices
    return Scores(
        n=n,
        correct=correct,
        accuracy=correct / n,
        top5=float((best == labels[:, None]).any(dim=1).double().mean()),
        loss=float(functional.cross_entropy(logits, labels)),
        confusion=table.tolist(),
        per_class=_per_class(table, classes),
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
            float(hits[c] / predicted[c]) if predicted[c] else None,
            float(hits[c] / truth[c]) if truth[c] else None,
        )
        for c, name in enumerate(classes)
    ]
