"""`--time-budget`: chooses the largest option that fits the time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

SPARE = 0.85  # share of the budget for training; the rest is for decoding, evaluation and saving


@dataclass(frozen=True)
class Option:
    """One configuration: `values` of settings, and between `least` and `most` epochs.

    `seconds`: measures the seconds of one epoch when called; None if it cannot run here.
    """

    values: dict[str, Any]
    least: int
    most: int
    seconds: Callable[[], float | None]


@dataclass(frozen=True)
class Fitting:
    """The chosen option: its values, the number of epochs and their expected seconds."""

    values: dict[str, Any]
    epochs: int
    seconds: float


def fitting(options: Iterable[Option], budget: float) -> Fitting | None:
    """The first option whose minimum epochs fit into `budget` seconds, with all epochs that fit.

    If there is none, the option with the most epochs that fit; None if no epoch of any fits.
    """
    best: Fitting | None = None
    for option in options:
        each = option.seconds()
        if each is None:
            continue
        epochs = min(option.most, int(SPARE * budget / max(each, 1e-9)))
        fit = Fitting(option.values, epochs, epochs * each)
        if epochs >= option.least:
            return fit
        if epochs and (best is None or epochs > best.epochs):
            best = fit
    return best
