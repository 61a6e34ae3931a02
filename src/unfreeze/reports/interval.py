"""How far a measured accuracy can be trusted."""

import math
from collections.abc import Sequence

Z95 = 1.959964  # the normal quantile that leaves 2.5 % on either side


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, (low, high); (0, 1) where nothing was counted.

    Wilson (1927): unlike the textbook interval it stays inside [0, 1] and is honest for small
    samples and for shares near 0 or 1.
    """
    if total == 0:
        return 0.0, 1.0
    share, width = right / total, Z95**2 / total
    centre = (share + width / 2) / (1 + width)
    spread = Z95 / (1 + width) * math.sqrt(share * (1 - share) / total + width / (4 * total))
    # the ends are exact where nothing or everything was right; arithmetic misses them by a hair
    return (
        0.0 if right == 0 else max(0.0, centre - spread),
        1.0 if right == total else min(1.0, centre + spread),
    )


def balanced(counts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The 95 % interval of the mean of several shares, each (right, total) of its own images.

    Classes without a image do not count; (0, 1) where there is none.
    """
    there = [(right, total) for right, total in counts if total]
    if not there:
        return 0.0, 1.0
    shares = [right / total for right, total in there]
    each = [1 / len(there)] * len(there)
    low, high = combined(shares, [wilson(*one) for one in there], each)
    return max(0.0, low), min(1.0, high)


def combined(
    estimates: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    weights: Sequence[float],
) -> tuple[float, float]:
    """The interval of a weighted sum of independent estimates, from an interval of each.

    MOVER (Zou and Donner 2008; for a difference of two shares it is Newcombe's method 10 of 1998):
    distances from each estimate to its limits are added as squares.
    """
    middle = sum(w * e for w, e in zip(weights, estimates, strict=True))
    below = above = 0.0
    for w, e, (low, high) in zip(weights, estimates, intervals, strict=True):
        down, up = (e - low, high - e) if w >= 0 else (high - e, e - low)
        below += (w * down) ** 2
        above += (w * up) ** 2
    return middle - math.sqrt(below), middle + math.sqrt(above)
