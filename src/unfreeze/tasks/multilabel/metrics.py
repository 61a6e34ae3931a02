"""Metrics of several labels for an image, and the thresholds by which labels are predicted.

Scores and targets are `[N, C]`; targets are 1, 0, or NaN where a label is unknown, which counts
nowhere. A class without an image that has the label has no average precision, recall and F1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
ENOUGH = 10  # validation images with a label, for a threshold of its own


def average_precision(scores: npt.NDArray[np.floating], targets: Floats) -> Floats:
    """Average precision of each class [C], as scikit-learn computes it; NaN without positives.

    The mean, over images that have the label, of the precision at their score.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked = np.take_along_axis(scores, order, 0)
    truth = np.take_along_axis(targets, order, 0)
    have, known = (truth == 1).astype(np.float64), (~np.isnan(truth)).astype(np.float64)
    hits, seen = np.cumsum(have, axis=0), np.cumsum(known, axis=0)
    # equal scores have one precision: that at the last of them
    last = np.ones(ranked.shape, np.bool_)
    last[:-1] = ranked[1:] != ranked[:-1]
    rows = np.where(last, np.arange(len(ranked))[:, None], len(ranked))
    ends = np.minimum.accumulate(rows[::-1], axis=0)[::-1]
    precision = np.take_along_axis(hits / np.maximum(seen, 1), ends, 0)
    total = have.sum(axis=0)
    summed = (have * precision).sum(axis=0)
    return np.where(total > 0, summed / np.maximum(total, 1), np.nan)


@dataclass(frozen=True)
class LabelCounts:
    """Correct and wrong decisions for each class [C]."""

    right: Floats  # images that have the label and get it
    wrong: Floats  # get it and do not have it
    missed: Floats  # have it and do not get it

    @classmethod
    def of(cls, probabilities: Floats, targets: Floats, thresholds: Floats) -> "LabelCounts":
        """The counts if labels are predicted from `thresholds` [C] on."""
        predicted = probabilities >= thresholds
        have, lack = targets == 1, targets == 0
        return cls(
            *(
                cells.sum(axis=0, dtype=np.float64)
                for cells in (predicted & have, predicted & lack, ~predicted & have)
            )
        )

    @property
    def precision(self) -> Floats:
        """Share of predicted labels that are right; NaN without predictions."""
        return _ratio(self.right, self.right + self.wrong)

    @property
    def recall(self) -> Floats:
        """Share of labels that are predicted; NaN without positives."""
        return _ratio(self.right, self.right + self.missed)

    @property
    def f1(self) -> Floats:
        """Harmonic mean of both; NaN without positives."""
        values: Floats = _ratio(2 * self.right, 2 * self.right + self.wrong + self.missed)
        return np.where(self.right + self.missed > 0, values, np.nan)

    @property
    def micro_f1(self) -> float:
        """F1 over the decisions for all classes together; NaN if none is or should be yes."""
        right, wrong, missed = (x.sum() for x in (self.right, self.wrong, self.missed))
        return float(_ratio(2 * right, 2 * right + wrong + missed))


def _ratio(part: Any, whole: Any) -> Floats:
    values: Floats = np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
    return values


def mean_of_defined(values: Floats) -> float:
    """The mean without NaN; NaN if there is nothing else."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


@dataclass(frozen=True)
class Threshold:
    """The probability from which on a label is predicted.

    `origin`: `own`, chosen for its class; `shared`, for all classes together; `default`, 0.5.
    """

    value: float
    origin: str


def choose_thresholds(probabilities: Floats, targets: Floats) -> list[Threshold]:
    """The threshold of each class with the best F1 on these images, which must be validation's.

    A class with fewer than ENOUGH images that have the label gets the threshold with the best micro
    F1; if all classes together have fewer, all get 0.5.
    """
    have, lack = (targets == 1).sum(axis=0), (targets == 0).sum(axis=0)
    if have.sum() < ENOUGH:
        return [Threshold(0.5, "default")] * len(have)
    known = ~np.isnan(targets)
    shared = Threshold(best_threshold(probabilities[known], targets[known]), "shared")
    return [
        Threshold(best_threshold(probabilities[some, c], targets[some, c]), "own")
        if have[c] >= ENOUGH and lack[c]
        else shared
        for c, some in enumerate(known.T)
    ]


def best_threshold(probabilities: Floats, truth: Floats) -> float:
    """The threshold with the best F1: half way between two probabilities, the highest if equal."""
    order = np.argsort(-probabilities, kind="stable")
    ranked = np.append(probabilities[order], -1.0)
    ends = np.flatnonzero(ranked[1:] != ranked[:-1])
    hits = np.cumsum(truth[order])[ends]
    f1 = 2 * hits / (ends + 1 + truth.sum())
    end = ends[int(f1.argmax())]
    middle = float((ranked[end] + max(0.0, ranked[end + 1])) / 2)
    return middle if middle > ranked[end + 1] else float(ranked[end])


def class_rows(
    names: Sequence[str],
    scores: npt.NDArray[np.floating],
    probabilities: Floats,
    targets: Floats,
    thresholds: Sequence[Threshold],
) -> list[dict[str, Any]]:
    """Metrics of each class; None where one is undefined. `n`: images that have the label."""
    values = np.array([threshold.value for threshold in thresholds])
    counts = LabelCounts.of(probabilities, targets, values)
    columns = {
        "ap": average_precision(scores, targets),
        "f1": counts.f1,
        "precision": counts.precision,
        "recall": counts.recall,
    }
    return [
        {
            "name": name,
            "n": int((targets[:, c] == 1).sum()),
            "unknown": int(np.isnan(targets[:, c]).sum()),
            **{key: _plain(column[c]) for key, column in columns.items()},
            "threshold": thresholds[c].value,
            "threshold_from": thresholds[c].origin,
        }
        for c, name in enumerate(names)
    ]


def _plain(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
