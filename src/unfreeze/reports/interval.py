"""Confidence intervals of accuracies."""

import math
from collections.abc import Sequence

Z95 = 1.959964  # 97.5 % quantile of the standard normal distribution


def wilson(right: int, total: int) -> tuple[float, float]:
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
    low, high = combined(shares, [wilson(*counts) for counts in present], weights)
    return max(0.0, low), min(1.0, high)


def combined(
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
