"""How well a classifier knows what it does not know, on images that it has not seen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.errors import DataError, WeightsError
from unfreeze.evaluation.conformal import risk_coverage
from unfreeze.reports.intervals import wilson_interval
from unfreeze.transfer.known_images import KnownImages, load_known_images

CURVE = 100  # points of the risk-coverage curve in JSON, at most


@dataclass(frozen=True)
class UnknownEvaluation:
    """What `predict --unknown LEVEL` says of `n` images that the run neither trained nor chose on.

    `validation_images`: those that the thresholds and scores come from; `by_class`: whether each
    class has its own threshold. Intervals: 95 % (Wilson). `score`: that of out-of-distribution
    images. `curve`: [coverage, risk]: share of images answered, the most confident first, and share
    of errors among them; `aurc`: the area under it (the mean risk). `reason`: why there are no
    values, else "".
    """

    level: float
    n: int = 0
    validation_images: int = 0
    by_class: bool = False
    score: str = ""
    answered: float | None = None
    answered_interval: tuple[float, float] | None = None
    accuracy_answered: float | None = None
    accuracy_answered_interval: tuple[float, float] | None = None
    coverage: float | None = None
    coverage_interval: tuple[float, float] | None = None
    set_size: float | None = None
    aurc: float | None = None
    curve: tuple[tuple[float, float], ...] = ()
    reason: str = ""

    def figures(self) -> dict[str, Any]:
        """The values that stand beside the accuracy."""
        names = ("answered", "accuracy_answered", "coverage", "set_size")
        return {name: getattr(self, name) for name in names}


def stored_known_images(
    run: str | Path, card: ModelCard, *, last_epoch: bool = False
) -> KnownImages | str:
    """What the run stored, or the reason why it cannot be used.

    `last_epoch`: the evaluated weights are those of the last epoch, not the model's.
    """
    if last_epoch:
        return "The thresholds are those of the best epoch's weights."
    try:
        return load_known_images(run, card)
    except WeightsError as error:
        return error.sentence


def evaluate_unknown(
    known: KnownImages | str,
    logits: Tensor,
    scores: npt.NDArray[np.float64] | None,
    labels: npt.NDArray[np.int64],
    parts: npt.NDArray[np.str_],
    *,
    temperature: float,
    level: float,
) -> UnknownEvaluation:
    """The evaluation on logits [N, C], `scores` [N] and labels [N].

    `parts` [N]: "train", "val" or "": how the run used each image; only those of "" count.
    """
    if isinstance(known, str) or scores is None:
        return UnknownEvaluation(level, reason=str(known))
    new = parts == ""
    if not new.any():
        why = "The run trained on these images, or set the thresholds on them."
        return UnknownEvaluation(level, reason=why)
    logits, scores, labels = logits[np.flatnonzero(new)], scores[new], labels[new]
    try:
        decisions = known.decide(logits, scores, temperature, level)
    except DataError as error:  # too few validation images
        return UnknownEvaluation(level, reason=error.sentence)
    n = len(labels)
    right = decisions.probabilities.argmax(axis=1) == labels
    covered = decisions.sets[np.arange(n), labels]
    answered, correct = int(decisions.answered.sum()), int(right[decisions.answered].sum())
    share, risk = risk_coverage(decisions.probabilities.max(axis=1), right)
    points = np.unique(np.linspace(0, n - 1, min(n, CURVE)).astype(int))
    return UnknownEvaluation(
        level=level,
        n=n,
        validation_images=len(known.labels),
        by_class=decisions.by_class,
        score=known.choice.name,
        answered=answered / n,
        answered_interval=wilson_interval(answered, n),
        accuracy_answered=correct / answered if answered else None,
        accuracy_answered_interval=wilson_interval(correct, answered) if answered else None,
        coverage=float(covered.mean()),
        coverage_interval=wilson_interval(int(covered.sum()), n),
        set_size=float(decisions.sets.sum(axis=1).mean()),
        aurc=float(risk.mean()),
        curve=tuple((float(share[i]), float(risk[i])) for i in points),
    )
