"""Whether a probability may be believed: expected calibration error, and a temperature."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

BINS = 15  # of equal width over the probability of the predicted class (Guo et al. 2017)
COLDEST, HOTTEST = 0.01, 100.0  # beyond these a temperature changes nothing that can be measured


@dataclasses.dataclass(frozen=True)
class Bin:
    """Images whose predicted class has a probability in (low, high].

    `confidence`: the mean of these probabilities; `accuracy`: the share that is right.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def calibration_bins(probabilities: Tensor, labels: Tensor) -> list[Bin]:
    """The bins that hold a image, of probabilities [N, C] and labels [N]."""
    best = probabilities.max(dim=1)
    sure = best.values.double().cpu().numpy()
    right = (best.indices == labels).double().cpu().numpy()
    edges = np.linspace(0, 1, BINS + 1)
    places = np.searchsorted(edges[1:-1], sure)
    return [
        Bin(
            float(edges[place]),
            float(edges[place + 1]),
            int((inside := places == place).sum()),
            float(sure[inside].mean()),
            float(right[inside].mean()),
        )
        for place in np.unique(places).tolist()
    ]


def calibration_error(bins: list[Bin]) -> float:
    """The mean over images of |accuracy - confidence| of their bin: ECE, from 0 to 1.

    Guo et al. 2017, section 2, equation 3.
    """
    total = sum(one.n for one in bins)
    return sum(one.n * abs(one.accuracy - one.confidence) for one in bins) / total


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T for which softmax(logits / T) has the lowest cross-entropy; logits [N, C], labels [N].

    In 1 / T the cross-entropy is convex (Guo et al. 2017, section 4.2), so its derivative is
    halved in on. Where all images are right a lower T is always better: COLDEST is returned.
    """
    logits = logits.double()
    own = logits.gather(1, labels.long()[:, None])[:, 0]

    def slope(inverse: float) -> float:
        chances = (logits * inverse).softmax(dim=1)
        return float(((chances * logits).sum(dim=1) - own).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(high) <= 0:
        return COLDEST
    if slope(low) >= 0:
        return HOTTEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def calibrated(logits: Tensor, temperature: float) -> Tensor:
    """Logits whose softmax is that of the temperature; the order of classes stays."""
    return logits if temperature == 1 else logits / torch.tensor(temperature, dtype=logits.dtype)
