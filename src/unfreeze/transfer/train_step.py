"""One training step: forward, backward and update, with accumulation and data parallelism."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unfreeze.data.loading.loader import Batch, Loader
from unfreeze.errors import DivergedError
from unfreeze.optim.optimizer import decay_groups, make_optimizer, set_lr
from unfreeze.runtime.device import autocast
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.step_timer import StepMeter
from unfreeze.transfer.ema import WeightAverage
from unfreeze.transfer.feature_cache.loader import CachedLoader
from unfreeze.transfer.loss import TrainingConfig, TrainingLoss, seed_step


class OptimizerStep:
    """Optimizer and gradient scaler; `named`: all parameters trained in any epoch."""

    def __init__(
        self,
        named: list[tuple[str, nn.Parameter]],
        fit: TrainingConfig,
        device: torch.device,
        processes: Distributed,
    ) -> None:
        self.clip, self.processes = fit.clip_grad, processes
        self.parameters = [parameter for _, parameter in named]
        self.optimizer = make_optimizer(
            fit.optimizer,
            decay_groups(named, fit.weight_decay, fit.scales),
            lr=fit.lr,
            momentum=fit.momentum,
            weight_decay=fit.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=fit.precision == "fp16")

    def begin(self, lr: float) -> None:
        """Start a step: set the learning rate and clear the gradients."""
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a part of the step's loss."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Sum the gradients over processes, clip them and step."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.processes.all_reduce(gradients)
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()


class StepResult(NamedTuple):
    """Result of a step: this process's part of the loss, its logits [B, C] and labels [B].

    `images`: number over all processes.
    """

    loss: Tensor
    logits: Tensor
    labels: Tensor
    images: int


class Stepper:
    """Performs training steps on `network`; `named`: all parameters trained in any epoch."""

    def __init__(
        self,
        network: nn.Module,
        loader: Loader,
        fit: TrainingConfig,
        *,
        named: list[tuple[str, nn.Parameter]],
        prepare: Callable[[Tensor], Tensor],
        processes: Distributed,
    ) -> None:
        self.network, self.loader, self.fit, self.prepare = network, loader, fit, prepare
        self.processes = processes
        self.device = next(network.parameters()).device
        self.update = OptimizerStep(named, fit, self.device, processes)
        self.objective = TrainingLoss(fit, self.device)
        self.average = WeightAverage(network, fit.ema) if fit.ema else None

    def take(
        self, step: int, batch: Batch, lr: float, shortcut: CachedLoader | None = None
    ) -> StepResult:
        """Step `step` (from 0) at learning rate `lr`; does not wait for the device."""
        fit = self.fit
        seed_step(fit.seed, step, self.device, self.processes.rank)
        self.update.begin(lr)
        labels = batch.labels.to(self.device, non_blocking=True)
        inputs, targets = self.objective.mixed(self._inputs(batch, shortcut), labels)
        global_batch = self.loader.batch(step)
        total = self.objective.total(self.loader.dataset.labels[global_batch])
        forward = self.network if shortcut is None else shortcut.border.after
        count = parts(len(global_batch), self.processes.world, fit.accumulate)
        losses, outputs = [], []
        for part, target in zip(*(t.tensor_split(count) for t in (inputs, targets)), strict=True):
            with autocast(self.device, fit.precision):
                logits = forward(part)
            loss = self.objective.loss(logits, target, total)
            self.update.backward(loss)
            losses.append(loss.detach())
            outputs.append(logits.detach())
        self.update.step()
        if self.average:
            self.average.update(self.network, step + 1)
        return StepResult(torch.stack(losses).sum(), torch.cat(outputs), labels, len(global_batch))

    def _inputs(self, batch: Batch, shortcut: CachedLoader | None) -> Tensor:
        if shortcut is not None:
            return batch.views[0]
        return self.prepare(batch.views[0].to(self.device, non_blocking=True))


def parts(images: int, processes: int, wanted: int) -> int:
    """Gradient accumulation steps: `wanted`, or fewer so that each part has at least two images.

    The same on all processes although their shares may differ by one image, because synchronised
    batch norms communicate in every part; batch norm cannot train on a single image.
    """
    return min(wanted, max(1, images // processes // 2))


class LabelMeter(StepMeter):
    """Adds accuracy, and stores each step's loss so that the first non-finite one can be named."""

    def reset(self) -> None:
        """Start a new interval."""
        super().reset()
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.last_step = 0

    def take(self, step: int, taken: StepResult) -> None:
        """Add step `step` (from 1); does not wait for the device."""
        self.losses.append(taken.loss)
        self.hits.append((taken.logits.argmax(dim=1) == taken.labels).sum())
        self.last_step = step
        self.step_done(taken.loss, taken.images)

    def read(self) -> dict[str, float]:
        """Metrics of the interval; waits for the device. DivergedError for a non-finite loss."""
        total, correct = self.images, int(self.over(torch.stack(self.hits).sum()))
        self._check(self.over(torch.stack(self.losses)).tolist())
        accuracy = {"accuracy": correct / total, "correct": correct, "total": total}
        return {**super().read(), **accuracy}

    def _check(self, losses: list[float]) -> None:
        for step, loss in enumerate(losses, self.last_step - len(losses) + 1):
            if not math.isfinite(loss):
                raise diverged_error(f"The loss was {loss} at step {step}.")


def diverged_error(sentence: str) -> DivergedError:
    """DivergedError with the usual remedies as the next step."""
    return DivergedError(sentence, "Lower --lr, add --warmup-epochs, or use --precision fp32.")
