"""A learning rate by a range test: the rate rises with every step, and the loss says where.

Smith, arXiv 1506.01186, section 3.3, as the field runs it: exponentially from very small to very
large, on a smoothed loss, stopped where that explodes; the rate of the steepest fall is taken.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from unfreeze.runtime.console import Console
from unfreeze.transfer.freeze import apply_freeze
from unfreeze.transfer.trainer import Trainer

STEPS = 100
LOWEST, HIGHEST = 1e-3, 1e3  # times the planned rate
SMOOTHING = 0.95
EXPLODED = 4.0  # times the smallest smoothed loss
LEAVE_OUT = 10, 5  # points at the start, whose average is young, and at the end, where it explodes


@dataclass(frozen=True)
class Found:
    """What was tried, with the loss of each step; `lr` is None where it never fell."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    lr: float | None


def find_lr(
    trainer: Trainer, console: Console, stop: Callable[[], bool], *, steps: int = STEPS
) -> Found | None:
    """What the images that `trainer` begins with say of rates around its own.

    None where `stop` said so on the way. The steps are real ones; afterwards the network, all that
    belongs to it and the random numbers are as they were.
    """
    before = copy.deepcopy(trainer.state())
    rates, smooth, losses = spread(trainer.fit.lr, steps), Smooth(), list[float]()
    apply_freeze(trainer.network, trainer.freeze.at(0))
    trainer.network.train()
    asked = False
    with (
        torch.random.fork_rng([trainer.device] if trainer.device.type == "cuda" else []),
        console.progress("looking for a learning rate", steps) as advance,
    ):
        for rate, batch in zip(rates, trainer.loader.stream(0, steps), strict=True):
            taken = trainer.stepper.take(batch.step, batch, rate)
            losses.append(float(trainer.processes.sum(taken.loss)))
            advance(1)
            asked = trainer.processes.any([stop()])[0]
            if smooth.add(losses[-1]) or asked:
                break
    trainer.restore(before)
    if asked:
        return None
    return Found(rates[: len(losses)], losses, smooth.values, steepest(rates, smooth.values))


def spread(lr: float, steps: int) -> list[float]:
    """`steps` rates from LOWEST to HIGHEST times `lr`, each the same multiple of the one before."""
    growth = (HIGHEST / LOWEST) ** (1 / (steps - 1))
    return [lr * LOWEST * growth**step for step in range(steps)]


class Smooth:
    """The running mean of a loss, without the bias of its start."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._sum = 0.0

    def add(self, loss: float) -> bool:
        """Take a loss in; whether it has exploded."""
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
        value = self._sum / (1 - SMOOTHING ** (len(self.values) + 1))
        self.values.append(value)
        return not math.isfinite(value) or value > EXPLODED * min(self.values)


def steepest(rates: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """The rate at which the smoothed loss falls fastest over equal steps of log rate."""
    first, last = LEAVE_OUT[0], len(smoothed) - LEAVE_OUT[1]
    falls = [(smoothed[i - 1] - smoothed[i + 1], i) for i in range(first, last - 1)]
    if not falls:
        return None
    fall, place = max(falls)
    return float(f"{rates[place]:.2g}") if fall > 0 else None
