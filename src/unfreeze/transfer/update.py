"""Optimizer step: gradient all-reduce, clipping and loss scaling."""

import torch
from torch import Tensor, nn

from unfreeze.optim.make import decay_groups, make_optimizer, set_lr
from unfreeze.runtime.processes import Processes
from unfreeze.transfer.fit import Fit


class Update:
    """Optimizer and gradient scaler; `named`: all parameters trained in any epoch."""

    def __init__(
        self,
        named: list[tuple[str, nn.Parameter]],
        fit: Fit,
        device: torch.device,
        processes: Processes,
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
        self.processes.add_up(gradients)
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
