"""Learning rates as functions of the global step: nothing to restore, everything to plot."""

import math


def warmup_cosine(
    step: int, *, total: int, warmup: int, base: float, final: float = 0.0, start: float = 0.0
) -> float:
    """Linear from `start` to `base` over `warmup` steps, then half a cosine to `final`.

    As SwAV's published runs: the last warm-up step has `base` itself, the cosine's first step too.
    """
    if step < warmup:
        return start + (base - start) * step / max(1, warmup - 1)
    t = (step - warmup) / max(1, total - warmup)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * t))


def schedule_lr(name: str, step: int, *, total: int, warmup: int, base: float) -> float:
    """`cosine` to 0 at the end, `constant`, or `step` (a tenth at 1/2, a hundredth at 3/4)."""
    if name == "cosine" or step < warmup:
        return warmup_cosine(step, total=total, warmup=warmup, base=base)
    if name == "constant":
        return base
    done = step / max(1, total)
    return base * (0.01 if done >= 0.75 else 0.1 if done >= 0.5 else 1.0)
