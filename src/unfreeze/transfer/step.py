"""One training step: forward, backward and update, with accumulation and data parallelism."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unfreeze.data.loader import Batch, Loader
from unfreeze.runtime.devices import autocast
from unfreeze.runtime.processes import Processes
from unfreeze.transfer.average import Average
from unfreeze.transfer.fit import Fit, seed_step
from unfreeze.transfer.objective import Objective
from unfreeze.transfer.shortcut import Shortcut
from unfreeze.transfer.update import Update


class Taken(NamedTuple):
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
        fit: Fit,
        *,
        named: list[tuple[str, nn.Parameter]],
        prepare: Callable[[Tensor], Tensor],
        processes: Processes,
    ) -> None:
        self.network, self.loader, self.fit, self.prepare = network, loader, fit, prepare
        self.processes = processes
        self.device = next(network.parameters()).device
        self.update = Update(named, fit, self.device, processes)
        self.objective = Objective(fit, self.device)
        self.average = Average(network, fit.ema) if fit.ema else None

    def take(self, step: int, batch: Batch, lr: float, shortcut: Shortcut | None = None) -> Taken:
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
        return Taken(torch.stack(losses).sum(), torch.cat(outputs), labels, len(global_batch))

    def _inputs(self, batch: Batch, shortcut: Shortcut | None) -> Tensor:
        if shortcut is not None:
            return batch.views[0]
        return self.prepare(batch.views[0].to(self.device, non_blocking=True))


def parts(images: int, processes: int, wanted: int) -> int:
    """Gradient accumulation steps: `wanted`, or fewer so that each part has at least two images.

    The same on all processes although their shares may differ by one image, because synchronised
    batch norms communicate in every part; batch norm cannot train on a single image.
    """
    return min(wanted, max(1, images // processes // 2))
