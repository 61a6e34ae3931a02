"""Accuracies over seeds and images, and paired differences between them, with intervals.

Two sources of variation: the seed of a run and the test images. Each gives an interval; the
distances from the estimate to their limits are added in quadrature. Variation that both share is
counted twice, so the intervals are conservative.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unfreeze.reports.interval import Z95, wilson

Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval; `deviation` over seeds, None for one seed."""

    mean: float
    low: float
    high: float
    deviation: float | None


def accuracy(right: Sequence[Right], images: int) -> Estimate:
    """Mean accuracy of one start; `right`: for each seed, which images are classified correctly.

    `images`: number of distinct images over all seeds. Wilson's interval for the images, Student's
    t for the seeds (none with a single seed).
    """
    means = [float(hits.mean()) for hits in right]
    mean = sum(means) / len(means)
    low, high = wilson_of_share(mean, images)
    width = _seed_interval(means)
    return Estimate(
        mean,
        max(0.0, mean - math.hypot(mean - low, width)),
        min(1.0, mean + math.hypot(high - mean, width)),
        _deviation(means),
    )


def difference(
    first: Sequence[Right], second: Sequence[Right], images: int, *, shared: bool
) -> Estimate:
    """Accuracy of `first` minus that of `second`, paired by seed and image.

    `images` as above; `shared`: every seed is evaluated on all of them. For the images the
    interval of Bonett and Price (2012), which adds one pseudo-observation to each side;
    Student's t for the seeds.
    """
    differences = [a.astype(np.float64) - b for a, b in zip(first, second, strict=True)]
    means = [float(d.mean()) for d in differences]
    mean = sum(means) / len(means)
    by_image = np.mean(differences, axis=0) if shared else np.concatenate(differences)
    adjusted = np.append(by_image, [1.0, -1.0])
    image_width = Z95 * float(adjusted.std()) / math.sqrt(images + 2)
    width = math.hypot(image_width, _seed_interval(means))
    middle = float(adjusted.mean())
    return Estimate(mean, max(-1.0, middle - width), min(1.0, middle + width), _deviation(means))


def wilson_of_share(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval for a mean proportion, for which `share * n` may be fractional."""
    low, high = wilson(math.floor(share * n), n)[0], wilson(math.ceil(share * n), n)[1]
    return low, high


def _seed_interval(means: Sequence[float]) -> float:
    """Half width of Student's t interval over seeds; 0 for one seed."""
    spread = _deviation(means)
    if spread is None:
        return 0.0
    from scipy.stats import t

    quantile = float(t.ppf(0.975, len(means) - 1))
    return quantile * spread / math.sqrt(len(means))


def _deviation(means: Sequence[float]) -> float | None:
    return float(np.std(means, ddof=1)) if len(means) > 1 else None
