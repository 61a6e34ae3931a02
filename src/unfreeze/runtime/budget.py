"""`--time-budget`: the first of several options, from the largest down, that fits a time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

SPARE = 0.85  # of the budget is planned for; the rest is for decoding, evaluations and saves


@dataclass(frozen=True)
class Option:
    """One way to run: `values` of settings, and from `least` to `most` epochs.

    `seconds`: of one epoch, measured when asked for; None where it cannot be computed here.
    """

    values: dict[str, Any]
    least: int
    most: int
    seconds: Callable[[], float | None]


@dataclass(frozen=True)
class Fitting:
    """What fits: the option's values, how many epochs, and the seconds that they take."""

    values: dict[str, Any]
    epochs: int
    seconds: float


def fitting(options: Iterable[Option], budget: float) -> Fitting | None:
    """The first option of which the least epochs fit into `budget` seconds, with all that fit.

    Where none has so much time, the one of which most epochs fit; None where not even one does.
    """
    best: Fitting | None = None
    for option in options:
        each = option.seconds()
        if each is None:
            continue
        epochs = min(option.most, int(SPARE * budget / max(each, 1e-9)))
        found = Fitting(option.values, epochs, epochs * each)
        if epochs >= option.least:
            return found
        if epochs and (best is None or epochs > best.epochs):
            best = found
    return best
