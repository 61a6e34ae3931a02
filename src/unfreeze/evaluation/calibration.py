"""Calibration of probabilities: expected calibration error (ECE) and temperature scaling."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

BINS = 15  # of equal width over the probability of the predicted class (Guo et al. 2017)
COLDEST, HOTTEST = 0.01, 100.0  # range of the temperature; beyond it nothing measurable changes


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
    """Images whose predicted class has a probability in (low, high].

    `confidence`: mean of these probabilities; `accuracy`: share of correct predictions.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def calibration_bins(probabilities: Tensor, labels: Tensor) -> list[CalibrationBin]:
    """The non-empty bins of probabilities [N, C] and labels [N]."""
    top = probabilities.max(dim=1)
    confidence = top.values.double().cpu().numpy()
    correct = (top.indices == labels).double().cpu().numpy()
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.searchsorted(edges[1:-1], confidence)
    return [
        CalibrationBin(
            float(edges[index]),
            float(edges[index + 1]),
            int((inside := bins == index).sum()),
            float(confidence[inside].mean()),
            float(correct[inside].mean()),
        )
        for index in np.unique(bins).tolist()
    ]


def calibration_error(bins: list[CalibrationBin]) -> float:
    """ECE, 0 to 1: the mean over images of |accuracy - confidence| of their bin.

    Guo et al. 2017, section 2, equation 3.
    """
    total = sum(bin_.n for bin_ in bins)
    return sum(bin_.n * abs(bin_.accuracy - bin_.confidence) for bin_ in bins) / total


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T that minimises the cross-entropy of softmax(logits / T); logits [N, C], labels [N].

    The cross-entropy is convex in 1 / T (Guo et al. 2017, section 4.2), so the root of its
    derivative is bisected. If every prediction is correct, a lower T is always better: COLDEST.
    """
    logits = logits.double()
    target = logits.gather(1, labels.long()[:, None])[:, 0]

    def slope(inverse: float) -> float:
        probabilities = (logits * inverse).softmax(dim=1)
        return float(((probabilities * logits).sum(dim=1) - target).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(high) <= 0:
        return COLDEST
    if slope(low) >= 0:
        return HOTTEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by the temperature; the order of the classes does not change."""
    return logits if temperature == 1 else logits / torch.tensor(temperature, dtype=logits.dtype)
