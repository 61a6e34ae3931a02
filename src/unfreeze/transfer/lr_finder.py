"""Learning rate range test: increase the rate each step, suggest the one of the steepest descent.

Smith, arXiv 1506.01186, section 3.3, in its usual form: rates grow exponentially from very small
to very large, the loss is smoothed, and the test stops when the loss diverges.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from unfreeze.runtime.console import Console
from unfreeze.training.trainer import Trainer
from unfreeze.transfer.callbacks import LayerFreezing
from unfreeze.transfer.freezing.freeze import apply_freeze
from unfreeze.transfer.task import FinetuneTask

STEPS = 100
LOWEST, HIGHEST = 1e-3, 1e3  # times the planned learning rate
SMOOTHING = 0.95
EXPLODED = 4.0  # times the smallest smoothed loss
LEAVE_OUT = 10, 5  # points ignored at the start (unstable average) and the end (divergence)


@dataclass(frozen=True)
class RangeTestResult:
    """Rates and losses of each step; `lr`: the suggestion, None if the loss never fell."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    lr: float | None


def find_lr(
    trainer: Trainer, console: Console, stop: Callable[[], bool], *, steps: int = STEPS
) -> RangeTestResult | None:
    """Run the range test on the first batches of a fine-tuning trainer, around its learning rate.

    The steps are real training steps; afterwards network, optimizer and random state are restored.
    Returns None if `stop` returned true before the end.
    """
    task, freezing = trainer.task, trainer.callback(LayerFreezing)
    if not isinstance(task, FinetuneTask) or freezing is None:
        raise TypeError("the range test is for fine-tuning")
    rates, smooth, losses = geometric_rates(task.fit.lr, steps), SmoothedLoss(), list[float]()
    plan, device, stopped = trainer.plan, trainer.state.device, False
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        console.progress("learning rate range test", steps) as advance,
    ):
        before = copy.deepcopy(trainer.state_dict())
        trainer.plan = replace(plan, learning_rate=rates.__getitem__)
        apply_freeze(task.model, freezing.schedule.at(0))
        task.model.train()
        task.begin(trainer.loader, trainer.forward)
        for batch in trainer.loader.stream(0, steps):
            losses.append(float(trainer.over(trainer.train_step(batch))))
            trainer.state.step += 1
            advance(1)
            stopped = trainer.processes.any([stop()])[0]
            if smooth.add(losses[-1]) or stopped:
                break
        trainer.plan = plan
        trainer.load_state_dict(before)
    if stopped:
        return None
    return RangeTestResult(
        rates[: len(losses)], losses, smooth.values, steepest_rate(rates, smooth.values)
    )


def geometric_rates(lr: float, steps: int) -> list[float]:
    """`steps` rates from LOWEST to HIGHEST times `lr`, evenly spaced on a log scale."""
    growth = (HIGHEST / LOWEST) ** (1 / (steps - 1))
    return [lr * LOWEST * growth**step for step in range(steps)]


class SmoothedLoss:
    """Bias-corrected exponential moving average of a loss."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._sum = 0.0

    def add(self, loss: float) -> bool:
        """Add a loss; return whether the average has diverged."""
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
        value = self._sum / (1 - SMOOTHING ** (len(self.values) + 1))
        self.values.append(value)
        return not math.isfinite(value) or value > EXPLODED * min(self.values)


def steepest_rate(rates: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """The rate at which the smoothed loss falls fastest per log rate; None if it never falls."""
    first, last = LEAVE_OUT[0], len(smoothed) - LEAVE_OUT[1]
    falls = [(smoothed[i - 1] - smoothed[i + 1], i) for i in range(first, last - 1)]
    if not falls:
        return None
    fall, index = max(falls)
    return float(f"{rates[index]:.2g}") if fall > 0 else None
