"""Learning-rate schedules as stateless functions of the global step."""

import math


def warmup_cosine(
    step: int, *, total: int, warmup: int, base: float, final: float = 0.0, start: float = 0.0
) -> float:
    """Linear warm-up from `start` to `base` over `warmup` steps, then cosine annealing to `final`.

    As in SwAV's published runs, both the last warm-up step and the first cosine step use `base`.
    """
    if step < warmup:
        return start + (base - start) * step / max(1, warmup - 1)
    t = (step - warmup) / max(1, total - warmup)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * t))


def schedule_lr(name: str, step: int, *, total: int, warmup: int, base: float) -> float:
    """Learning rate of `cosine` (to 0), `constant`, or `step` (/ 10 at 1/2, / 100 at 3/4)."""
    if name == "cosine" or step < warmup:
        return warmup_cosine(step, total=total, warmup=warmup, base=base)
    if name == "constant":
        return base
    done = step / max(1, total)
    return base * (0.01 if done >= 0.75 else 0.1 if done >= 0.5 else 1.0)
