"""Accuracies over seeds and images, and what one start is better than another, with intervals.

Two things are left to chance: the seed of a run and the images it is judged by. Each gives an
interval of its own; their distances from the middle are added as squares. What both have in common
is counted twice by that, so the intervals are rather too wide than too narrow.
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
    """A mean over seeds with its 95 % interval; `deviation` over seeds, None for one of them."""

    mean: float
    low: float
    high: float
    deviation: float | None


def accuracy(right: Sequence[Right], images: int) -> Estimate:
    """Of the arrays of one start, one a seed: which images were right.

    `images`: how many different ones there are over all seeds; one that is judged again is no
    new one. Wilson's interval for the images, Student's t for the seeds; one seed says nothing
    of others.
    """
    means = [float(one.mean()) for one in right]
    mean = sum(means) / len(means)
    low, high = wilson_of_share(mean, images)
    apart = _seeds(means)
    return Estimate(
        mean,
        max(0.0, mean - math.hypot(mean - low, apart)),
        min(1.0, mean + math.hypot(high - mean, apart)),
        _deviation(means),
    )


def difference(
    one: Sequence[Right], other: Sequence[Right], images: int, *, shared: bool
) -> Estimate:
    """How much more of the same images `one` has right than `other`, paired by seed and image.

    `images` as above; `shared`: every seed is judged by all of them. For the images the
    interval of Bonett and Price (2012), which thinks of one image more for either side;
    Student's t for the seeds.
    """
    each = [a.astype(np.float64) - b for a, b in zip(one, other, strict=True)]
    means = [float(d.mean()) for d in each]
    mean = sum(means) / len(means)
    found = np.mean(each, axis=0) if shared else np.concatenate(each)
    thought = np.append(found, [1.0, -1.0])
    apart = math.hypot(Z95 * float(thought.std()) / math.sqrt(images + 2), _seeds(means))
    middle = float(thought.mean())
    return Estimate(mean, max(-1.0, middle - apart), min(1.0, middle + apart), _deviation(means))


def wilson_of_share(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval for a mean of counts, which need not be a count itself."""
    low, high = wilson(math.floor(share * n), n)[0], wilson(math.ceil(share * n), n)[1]
    return low, high


def _seeds(means: Sequence[float]) -> float:
    """Half the interval that the spread over seeds alone gives."""
    spread = _deviation(means)
    if spread is None:
        return 0.0
    from scipy.stats import t

    quantile = float(t.ppf(0.975, len(means) - 1))
    return quantile * spread / math.sqrt(len(means))


def _deviation(means: Sequence[float]) -> float | None:
    return float(np.std(means, ddof=1)) if len(means) > 1 else None
