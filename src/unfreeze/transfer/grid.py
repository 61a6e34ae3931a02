"""Learning rates and weight decays tried at once on kept features, judged on validation.

Linear heads that see the same batches are one matrix product: G heads for C classes are one layer
of G * C outputs. Each has its own optimizer state, so each is trained as if it were alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from unfreeze.optim.make import make_optimizer, set_lr
from unfreeze.optim.schedules import schedule_lr
from unfreeze.runtime.console import Console
from unfreeze.runtime.devices import autocast
from unfreeze.transfer.fit import Fit, seed_step
from unfreeze.transfer.objective import Objective
from unfreeze.transfer.selection import Selection
from unfreeze.transfer.shortcut import Shortcut

RATES = (1.0, 0.1, 0.3, 3.0, 10.0, 30.0)  # times the planned rate; the first wins ties
DECAYS = (1e-4, 1e-3, 1e-2)
STEPS = 10_000  # at most, in whole epochs
LEAST_WORK = 10**12  # multiplications that a sweep may always take
TRAINING = 3  # a forward and a backward pass, in forward passes


@dataclass(frozen=True)
class Trial:
    """One pair, and what its head scored on validation in its best epoch (None: it diverged)."""

    lr: float
    weight_decay: float
    epoch: int | None = None
    accuracy: float = -1.0
    loss: float = math.inf

    @property
    def text(self) -> str:
        """The pair and what came of it."""
        pair = f"lr {self.lr:g}, weight decay {self.weight_decay:g}"
        if self.epoch is None:
            return f"{pair}: diverged"
        return f"{pair}: {self.accuracy:.4f}, loss {self.loss:.4f} in epoch {self.epoch}"


@dataclass(frozen=True)
class Sweep:
    """What is tried, and for how many epochs each."""

    trials: list[Trial]
    epochs: int


def sweep_epochs(
    epochs: int, steps_per_epoch: int, *, images: int, weights: int, heads: int, work: float
) -> int:
    """How many of `epochs` a sweep trains, at least one: all, as far as that is cheap.

    It may take as much arithmetic as the pass of the frozen part did (`work`, multiplications).
    `weights`: of one head.
    """
    affordable = int(max(work, LEAST_WORK) / (TRAINING * images * weights * heads))
    return max(1, min(epochs, STEPS // steps_per_epoch, affordable))


def pairs(lr: float, decay: float, *, free_lr: bool, free_decay: bool) -> list[Trial]:
    """What is tried: all rates with all decays, or the one that is given; the planned pair first.

    `lr`, `decay`: planned or given. A given value is not varied.
    """
    rates = [float(f"{lr * times:.3g}") for times in RATES] if free_lr else [lr]
    decays = list(dict.fromkeys((decay, *DECAYS))) if free_decay else [decay]
    return [Trial(rate, one) for one in decays for rate in rates]


def best(trials: Sequence[Trial]) -> Trial:
    """The highest accuracy, then the lowest loss, then the first."""
    return max(trials, key=lambda trial: (trial.accuracy, -trial.loss))


class Grid:
    """G heads in training on one shortcut; `network` has the untrained head as its `learner`."""

    def __init__(self, network: nn.Module, shortcut: Shortcut, sweep: Sweep, fit: Fit) -> None:
        border = shortcut.border
        if border.learner is None or border.approach is None:
            raise ValueError("only a Linear that alone learns can be tried many times at once")
        head = network.get_submodule(border.learner)
        if not isinstance(head, nn.Linear):
            raise TypeError(f"{border.learner} is no Linear")
        self.network, self.shortcut, self.approach = network, shortcut, border.approach
        self.trials, self.device = list(sweep.trials), head.weight.device
        warmup = round(fit.warmup_epochs * sweep.epochs / fit.epochs)
        # in half precision one head's overflow would spoil the step of all
        precision = "fp32" if fit.precision == "fp16" else fit.precision
        self.fit = replace(fit, epochs=sweep.epochs, warmup_epochs=warmup, precision=precision)
        count = len(self.trials)
        self.weights = [nn.Parameter(head.weight.detach().clone()) for _ in range(count)]
        self.biases = [
            nn.Parameter(head.bias.detach().clone()) for _ in range(count if _has(head) else 0)
        ]
        self.classes, self.objective = head.out_features, Objective(fit, self.device)
        self.optimizer = make_optimizer(
            fit.optimizer, self._groups(), lr=1.0, momentum=fit.momentum, weight_decay=0.0
        )
        self.selections = [Selection(fit.patience) for _ in self.trials]

    def run(self, console: Console, stop: Callable[[], bool]) -> list[Trial] | None:
        """Every trial with its score; None where `stop` said so before the end."""
        steps = self.shortcut.loader.steps_per_epoch
        devices = [self.device] if self.device.type == "cuda" else []
        label = f"trying {len(self.trials)} heads"
        with (
            torch.random.fork_rng(devices),
            console.progress(label, steps * self.fit.epochs) as advance,
        ):
            for epoch in range(self.fit.epochs):
                self.network.train()
                for batch in self.shortcut.epoch(epoch):
                    if stop():
                        return None
                    self._step(batch.step, batch.views[0], batch.labels.to(self.device))
                    advance(1)
                self._judge(epoch)
                if all(one.exhausted for one in self.selections):
                    break
        return [
            replace(trial, epoch=found.epoch, accuracy=found.accuracy, loss=found.loss)
            for trial, found in zip(self.trials, self.selections, strict=True)
        ]

    def _groups(self) -> list[dict[str, object]]:
        """As `decay_groups` for each head: weights decay, biases do not."""
        groups: list[dict[str, object]] = []
        for place, trial in enumerate(self.trials):
            own = {"lr_scale": trial.lr}
            weight = {"params": [self.weights[place]], "weight_decay": trial.weight_decay}
            groups.append({**weight, **own})
            if self.biases:
                groups.append({"params": [self.biases[place]], "weight_decay": 0.0, **own})
        return groups

    def _step(self, step: int, features: Tensor, labels: Tensor) -> None:
        fit, steps = self.fit, self.shortcut.loader.steps_per_epoch
        seed_step(fit.seed, step, self.device)
        share = schedule_lr(
            fit.schedule,
            step,
            total=steps * fit.epochs,
            warmup=steps * fit.warmup_epochs,
            base=1.0,
        )
        set_lr(self.optimizer, share)
        with autocast(self.device, fit.precision):
            logits = self._logits(self.approach(features))
        # a sum over heads: the gradient of each is that of its own mean loss
        loss = self.objective.loss(
            logits,
            labels[:, None].expand(-1, len(self.trials)),
            self.objective.total(labels.cpu()),
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _logits(self, inputs: Tensor) -> Tensor:
        """Scores [B, C, G] of what the head is fed, [B, D]."""
        weight = torch.cat(tuple(self.weights))
        bias = torch.cat(tuple(self.biases)) if self.biases else None
        scores = functional.linear(inputs, weight, bias)
        return scores.view(len(inputs), len(self.trials), self.classes).transpose(1, 2)

    @torch.inference_mode()
    def _judge(self, epoch: int) -> None:
        holdout, held = self.shortcut.holdout, self.shortcut.held_out
        if holdout is None or held is None:
            raise ValueError("no image is held out")
        self.network.eval()
        direct = self.shortcut.border.direct
        inputs = (b if direct else self.approach(b) for b in held.blocks(copied=not direct))
        logits = torch.cat([self._logits(one) for one in inputs])
        labels = holdout.labels.to(self.device)[:, None].expand(-1, len(self.trials))
        hits = (logits.argmax(dim=1) == labels).double().mean(dim=0).tolist()
        losses = functional.cross_entropy(logits.double(), labels, reduction="none").mean(dim=0)
        for one, accuracy, loss in zip(self.selections, hits, losses.tolist(), strict=True):
            if one.exhausted:
                continue
            if math.isfinite(loss):
                one.update(epoch, accuracy, loss)
            else:
                one.waited += 1


def _has(head: nn.Linear) -> bool:
    return head.bias is not None
