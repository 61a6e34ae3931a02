"""Confidence intervals of accuracies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Z95 = 1.959964  # 97.5 % quantile of the standard normal distribution


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Wilson score interval of a proportion at 95 %, (low, high); (0, 1) if `total` is 0.

    Wilson (1927): unlike the normal approximation it stays inside [0, 1] and keeps its coverage
    for small samples and for proportions near 0 or 1.
    """
    if total == 0:
        return 0.0, 1.0
    share, width = right / total, Z95**2 / total
    centre = (share + width / 2) / (1 + width)
    spread = Z95 / (1 + width) * math.sqrt(share * (1 - share) / total + width / (4 * total))
    # the limits are exactly 0 or 1 if nothing or everything is right; rounding may miss that
    return (
        0.0 if right == 0 else max(0.0, centre - spread),
        1.0 if right == total else min(1.0, centre + spread),
    )


def balanced(counts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The 95 % interval of balanced accuracy, from (right, total) of each class.

    Classes without images are ignored; (0, 1) if there are no others.
    """
    present = [(right, total) for right, total in counts if total]
    if not present:
        return 0.0, 1.0
    shares = [right / total for right, total in present]
    weights = [1 / len(present)] * len(present)
    low, high = mover_interval(shares, [wilson_interval(*counts) for counts in present], weights)
    return max(0.0, low), min(1.0, high)


def mover_interval(
    estimates: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    weights: Sequence[float],
) -> tuple[float, float]:
    """The interval of a weighted sum of independent estimates, from the interval of each.

    MOVER (Zou and Donner 2008; for a difference of two proportions, Newcombe's method 10 of 1998):
    distances from each estimate to its limits are added in quadrature.
    """
    middle = sum(w * e for w, e in zip(weights, estimates, strict=True))
    below = above = 0.0
    for w, e, (low, high) in zip(weights, estimates, intervals, strict=True):
        down, up = (e - low, high - e) if w >= 0 else (high - e, e - low)
        below += (w * down) ** 2
        above += (w * up) ** 2
    return middle - math.sqrt(below), middle + math.sqrt(above)


CorrectMask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class IntervalEstimate:
    """A mean over seeds with its 95 % interval; `deviation` over seeds, None for one seed."""

    mean: float
    low: float
    high: float
    deviation: float | None


def accuracy_over_seeds(right: Sequence[CorrectMask], images: int) -> IntervalEstimate:
    """Mean accuracy of one start; `right`: for each seed, which images are classified correctly.

    `images`: number of distinct images over all seeds. Wilson's interval for the images, Student's
    t for the seeds (none with a single seed).
    """
    means = [float(hits.mean()) for hits in right]
    mean = sum(means) / len(means)
    low, high = wilson_of_share(mean, images)
    width = _seed_interval(means)
    return IntervalEstimate(
        mean,
        max(0.0, mean - math.hypot(mean - low, width)),
        min(1.0, mean + math.hypot(high - mean, width)),
        _deviation(means),
    )


def paired_difference(
    first: Sequence[CorrectMask], second: Sequence[CorrectMask], images: int, *, shared: bool
) -> IntervalEstimate:
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
    return IntervalEstimate(
        mean, max(-1.0, middle - width), min(1.0, middle + width), _deviation(means)
    )


def metric_over_seeds(
    values: Sequence[float], resampled: npt.NDArray[np.float64]
) -> IntervalEstimate:
    """Mean over seeds of any metric, or of its paired differences.

    `values`: one for each seed; `resampled` [R]: their mean in each bootstrap resample of the
    images. Percentiles for the images, Student's t for the seeds (none with a single seed).
    """
    mean, width = sum(values) / len(values), _seed_interval(values)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return IntervalEstimate(
        mean,
        mean - math.hypot(max(0.0, mean - float(low)), width),
        mean + math.hypot(max(0.0, float(high) - mean), width),
        _deviation(values),
    )


def mean_over_runs(values: Sequence[float], held_out: float) -> IntervalEstimate:
    """Mean of a metric over runs whose training sets overlap, such as cross-validation folds.

    `held_out`: images held out by training images. Student's t with the variance of Nadeau and
    Bengio (2003), because runs that share images vary too little.
    """
    from scipy.stats import t

    mean, spread, count = sum(values) / len(values), _deviation(values), len(values)
    if spread is None:
        return IntervalEstimate(mean, -math.inf, math.inf, None)
    width = float(t.ppf(0.975, count - 1)) * spread * math.sqrt(1 / count + held_out)
    return IntervalEstimate(mean, mean - width, mean + width, spread)


def wilson_of_share(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval for a mean proportion, for which `share * n` may be fractional."""
    low, high = (
        wilson_interval(math.floor(share * n), n)[0],
        wilson_interval(math.ceil(share * n), n)[1],
    )
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
