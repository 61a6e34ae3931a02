"""How far a measured accuracy can be trusted."""

import math

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
