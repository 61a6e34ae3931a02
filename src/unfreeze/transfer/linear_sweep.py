"""Grid search of learning rate and weight decay for a linear head on cached features.

All heads train at once on the same batches: G heads for C classes are one linear layer of G * C
outputs. Each head has its own optimizer state, so the result is that of training it alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from unfreeze.optim.optimizer import make_optimizer, schedule_lr, set_lr
from unfreeze.runtime.console import Console
from unfreeze.runtime.device import autocast
from unfreeze.transfer.early_stopping import BestEpoch
from unfreeze.transfer.feature_cache.loader import CachedLoader
from unfreeze.transfer.loss import TrainingConfig, TrainingLoss, seed_step

RATES = (1.0, 0.1, 0.3, 3.0, 10.0, 30.0)  # times the planned learning rate; first wins ties
DECAYS = (1e-4, 1e-3, 1e-2)
STEPS = 10_000  # at most, rounded down to full epochs
LEAST_WORK = 10**12  # FLOPs that a sweep may always use
TRAINING = 3  # cost of a training step, in forward passes


@dataclass(frozen=True)
class SweepTrial:
    """One (lr, weight decay) pair and the validation result of its best epoch (None: diverged)."""

    lr: float
    weight_decay: float
    epoch: int | None = None
    accuracy: float = -1.0
    loss: float = math.inf

    @property
    def text(self) -> str:
        """The pair and its result, for people."""
        pair = f"lr {self.lr:g}, weight decay {self.weight_decay:g}"
        if self.epoch is None:
            return f"{pair}: diverged"
        return f"{pair}: {self.accuracy:.4f}, loss {self.loss:.4f} in epoch {self.epoch}"


@dataclass(frozen=True)
class SweepPlan:
    """The pairs to try, and for how many epochs."""

    trials: list[SweepTrial]
    epochs: int


def sweep_epochs(
    epochs: int, steps_per_epoch: int, *, images: int, weights: int, heads: int, work: float
) -> int:
    """Epochs of a sweep: as many of `epochs` as the budget allows, at least one.

    The budget is the cost of computing the features (`work`, FLOPs). `weights`: of one head.
    """
    affordable = int(max(work, LEAST_WORK) / (TRAINING * images * weights * heads))
    return max(1, min(epochs, STEPS // steps_per_epoch, affordable))


def sweep_trials(lr: float, decay: float, *, free_lr: bool, free_decay: bool) -> list[SweepTrial]:
    """The pairs to try, the planned one first: all rates times all decays.

    `free_lr`, `free_decay`: False for a value that the user gave, which is not varied.
    """
    rates = [float(f"{lr * factor:.3g}") for factor in RATES] if free_lr else [lr]
    decays = list(dict.fromkeys((decay, *DECAYS))) if free_decay else [decay]
    return [SweepTrial(rate, weight_decay) for weight_decay in decays for rate in rates]


def best_trial(trials: Sequence[SweepTrial]) -> SweepTrial:
    """The trial with the highest accuracy, then the lowest loss, then the first."""
    return max(trials, key=lambda trial: (trial.accuracy, -trial.loss))


class LinearHeadSweep:
    """Trains G heads on one feature cache; `network` has the untrained head."""

    def __init__(
        self, network: nn.Module, cached: CachedLoader, sweep: SweepPlan, fit: TrainingConfig
    ) -> None:
        split_point = cached.split_point
        if split_point.learner is None or split_point.approach is None:
            raise ValueError("a sweep needs a Linear as the only trainable layer")
        head = network.get_submodule(split_point.learner)
        if not isinstance(head, nn.Linear):
            raise TypeError(f"{split_point.learner} is not a Linear")
        self.network, self.cached, self.approach = network, cached, split_point.approach
        self.trials, self.device = list(sweep.trials), head.weight.device
        warmup = round(fit.warmup_epochs * sweep.epochs / fit.epochs)
        # in fp16, an overflow in one head would skip the step of all
        precision = "fp32" if fit.precision == "fp16" else fit.precision
        self.fit = replace(fit, epochs=sweep.epochs, warmup_epochs=warmup, precision=precision)
        count = len(self.trials)
        self.weights = [nn.Parameter(head.weight.detach().clone()) for _ in range(count)]
        self.biases = [
            nn.Parameter(head.bias.detach().clone())
            for _ in range(count if head.bias is not None else 0)
        ]
        self.classes, self.objective = head.out_features, TrainingLoss(fit, self.device)
        self.optimizer = make_optimizer(
            fit.optimizer, self._groups(), lr=1.0, momentum=fit.momentum, weight_decay=0.0
        )
        self.selections = [BestEpoch(fit.patience) for _ in self.trials]

    def run(self, console: Console, stop: Callable[[], bool]) -> list[SweepTrial] | None:
        """Train and evaluate all trials; None if `stop` returned true before the end."""
        steps = self.cached.loader.steps_per_epoch
        devices = [self.device] if self.device.type == "cuda" else []
        label = f"sweep of {len(self.trials)} heads"
        with (
            torch.random.fork_rng(devices),
            console.progress(label, steps * self.fit.epochs) as advance,
        ):
            for epoch in range(self.fit.epochs):
                self.network.train()
                for batch in self.cached.stream(epoch * steps, (epoch + 1) * steps):
                    if stop():
                        return None
                    self._step(batch.step, batch.views[0], batch.target.to(self.device))
                    advance(1)
                self._validate(epoch)
                if all(selection.exhausted for selection in self.selections):
                    break
        return [
            replace(
                trial, epoch=best_trial.epoch, accuracy=best_trial.accuracy, loss=best_trial.loss
            )
            for trial, best_trial in zip(self.trials, self.selections, strict=True)
        ]

    def _groups(self) -> list[dict[str, object]]:
        """Parameter groups of each head, as `decay_groups`: biases have no weight decay."""
        groups: list[dict[str, object]] = []
        for index, trial in enumerate(self.trials):
            scale = {"lr_scale": trial.lr}
            weight = {"params": [self.weights[index]], "weight_decay": trial.weight_decay}
            groups.append({**weight, **scale})
            if self.biases:
                groups.append({"params": [self.biases[index]], "weight_decay": 0.0, **scale})
        return groups

    def _step(self, step: int, features: Tensor, labels: Tensor) -> None:
        fit, steps = self.fit, self.cached.loader.steps_per_epoch
        seed_step(fit.seed, step, self.device)
        factor = schedule_lr(
            fit.schedule,
            step,
            total=steps * fit.epochs,
            warmup=steps * fit.warmup_epochs,
            base=1.0,
        )
        set_lr(self.optimizer, factor)
        with autocast(self.device, fit.precision):
            logits = self._logits(self.approach(features))
        # summed over heads, so each head's gradient is that of its own mean loss
        loss = self.objective.loss(
            logits,
            labels[:, None].expand(-1, len(self.trials)),
            self.objective.total(labels.cpu()),
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _logits(self, inputs: Tensor) -> Tensor:
        """Logits [B, C, G] of head inputs [B, D]."""
        weight = torch.cat(tuple(self.weights))
        bias = torch.cat(tuple(self.biases)) if self.biases else None
        logits = functional.linear(inputs, weight, bias)
        return logits.view(len(inputs), len(self.trials), self.classes).transpose(1, 2)

    @torch.inference_mode()
    def _validate(self, epoch: int) -> None:
        holdout, features = self.cached.holdout, self.cached.held_out
        if holdout is None or features is None:
            raise ValueError("there is no validation set")
        self.network.eval()
        direct = self.cached.split_point.direct
        inputs = (b if direct else self.approach(b) for b in features.blocks(copied=not direct))
        logits = torch.cat([self._logits(block) for block in inputs])
        labels = holdout.labels.to(self.device)[:, None].expand(-1, len(self.trials))
        hits = (logits.argmax(dim=1) == labels).double().mean(dim=0).tolist()
        losses = functional.cross_entropy(logits.double(), labels, reduction="none").mean(dim=0)
        for selection, accuracy, loss in zip(self.selections, hits, losses.tolist(), strict=True):
            if selection.exhausted:
                continue
            if math.isfinite(loss):
                selection.update(epoch, accuracy, loss)
            else:
                selection.waited += 1
