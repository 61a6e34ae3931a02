"""Checks against NaN and inf: of the loss, and of gradients with the images of the batch."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from unfreeze.data.loading.loader import Loader
from unfreeze.errors import DivergedError
from unfreeze.runtime.console import Console, QuietConsole
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.tasks.base import Task

IN_A_ROW = 20  # skipped steps before the run ends; fp16 needs a few to find its loss scale
SHOWN = 3  # images named on the console; log.txt and metrics.jsonl name all
_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


class LossCheck:
    """Ends a run at the first step with a NaN or inf loss; costs nothing until it is read.

    `over`: reduces the losses over several processes. `remedy`: the next step of the error.
    """

    def __init__(self, over: Callable[[torch.Tensor], torch.Tensor], remedy: str) -> None:
        self.over, self.remedy = over, remedy
        self.console: Console = QuietConsole()
        self._losses: list[torch.Tensor] = []
        self._last = 0  # step, counted from 1

    def begin(self) -> None:
        """Called before a step."""

    def update(self, step: Callable[[], Any]) -> None:
        """Call the optimizer's `step`."""
        step()

    def done(self, step: int, loss: torch.Tensor) -> None:
        """Record step `step` (from 0); does not wait for the device."""
        self._losses.append(loss.detach())
        self._last = step + 1

    def read(self) -> None:
        """Check the steps since the last call; waits for the device. Collective.

        Raises DivergedError for a NaN or inf loss.
        """
        if not self._losses:
            return
        losses = self.over(torch.stack(self._losses)).tolist()
        self._losses.clear()
        for step, loss in enumerate(losses, self._last - len(losses) + 1):
            if not math.isfinite(loss):
                raise DivergedError(f"The loss was {loss} at step {step}.", self.remedy)


class NanGuard(LossCheck):
    """Also skips steps with NaN or inf gradients.

    Call `begin` before the forward pass, `update` after the backward pass, then `done`.

    With `prompt`, the host checks the gradients at once and skips a bad step. Otherwise it does not
    wait: the device reverts a bad step, and the host learns of it with the next training record.
    """

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        *,
        prompt: bool,
        loader: Loader,
        run: RunFolder,
        processes: Distributed,
    ) -> None:
        super().__init__(processes.mean, "")
        self.task, self.model, self.optimizer = task, task.model, optimizer
        self.prompt, self.loader, self.run = prompt, loader, run
        self.skipped = self.in_a_row = 0
        self._pending: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # step, loss, whether bad

    def begin(self) -> None:
        """Save what a forward pass changes: running statistics and the task's state."""
        self._buffers = [buffer.detach().clone() for buffer in self.model.buffers()]
        self._snapshot = self.task.snapshot()

    def update(self, step: Callable[[], Any]) -> None:
        """Call the optimizer's `step`; with a NaN or inf gradient nothing changes."""
        self.bad = self.judged()
        if not self.waits:
            self._update_on_device(step)
        elif not bool(self.bad):
            step()
        else:
            for buffer, before in zip(self.model.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
            self.task.revert(self._snapshot)

    def judged(self) -> torch.Tensor:
        """Whether any gradient is NaN or inf: bool [], the same in every process."""
        norms = torch._foreach_norm([p.grad for p in self._trainable() if p.grad is not None])
        return ~torch.stack(norms).isfinite().all()

    @property
    def waits(self) -> bool:
        """Whether the host waits: always, or until optimizer and task have their whole state."""
        begun = all(p in self.optimizer.state for p in self._trainable())
        return self.prompt or not begun or self.task.growing(self._snapshot)

    def done(self, step: int, loss: torch.Tensor) -> None:
        """Record step `step` (from 0); with `prompt`, handle a bad one now."""
        self._pending.append((step, loss.detach(), self.bad))
        if self.prompt and bool(self.bad):
            self.read()

    def read(self) -> None:
        """Process the steps since the last call; waits for the device. Collective.

        Raises DivergedError for a NaN or inf loss, or too many skipped steps in a row.
        """
        if not self._pending:
            return
        steps, losses, flags = zip(*self._pending, strict=True)
        self._pending.clear()
        means = self.over(torch.stack(losses)).tolist()
        for step, loss, bad in zip(steps, means, torch.stack(flags).tolist(), strict=True):
            if not math.isfinite(loss):
                self._log(step, f"the loss was {loss}")
                raise self._diverged(f"The loss was {loss} at step {step + 1}", step)
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad:
                self._skipped(step)

    def _skipped(self, step: int) -> None:
        self.skipped += 1
        files = self._log(step, "non-finite gradient (NaN or inf), step skipped")
        if self.skipped == 1:
            self.console.warn(
                f"Step {step + 1} skipped: non-finite gradient (NaN or inf). Its images: "
                f"{_some(files)}. log.txt lists the images of every skipped step."
            )
        if self.in_a_row > IN_A_ROW:
            raise self._diverged(
                f"{self.in_a_row} steps in a row had non-finite gradients (NaN or inf), the last "
                f"one step {step + 1}",
                step,
            )
        if not self.prompt:
            self._decrement_counters()

    def _log(self, step: int, reason: str) -> list[str]:
        """Write the step and its images to metrics.jsonl and log.txt; returns the images."""
        files = self.loader.paths(step)
        position = {"step": step + 1, "epoch": step // self.loader.steps_per_epoch}
        self.run.metric({**position, "split": "skipped", "reason": reason, "files": files})
        self.run.log(f"step {step + 1}: {reason}; its images: {', '.join(files)}")
        return files

    def _diverged(self, sentence: str, step: int) -> DivergedError:
        return DivergedError(
            f"{sentence} (images: {_some(self.loader.paths(step))}).",
            "The last checkpoint is intact; log.txt lists every image of that step. Lower "
            "--base-lr, or use --precision fp32.",
        )

    def _update_on_device(self, step: Callable[[], Any]) -> None:
        tensors = list(self._changed())
        saved = [t.detach().clone() for t in tensors]
        step()
        revert_if(tensors, saved, self.bad)
        revert_if(list(self.model.buffers()), self._buffers, self.bad)
        self.task.revert(self._snapshot, self.bad)

    def _trainable(self) -> Iterator[torch.Tensor]:
        for group in self.optimizer.param_groups:
            yield from (p for p in group["params"] if p.grad is not None)

    def _changed(self) -> Iterator[torch.Tensor]:
        """Tensors that the optimizer's step changes on the device."""
        for p in self._trainable():
            yield p
            state = self.optimizer.state[p].values()
            yield from (v for v in state if torch.is_tensor(v) and v.device == p.device)

    def _decrement_counters(self) -> None:
        """Decrement the step counters that the optimizer keeps on the host."""
        for p, state in self.optimizer.state.items():
            count = state.get("step")
            if torch.is_tensor(count) and count.device != p.device:
                count -= 1


@torch.no_grad()
def revert_if(
    tensors: Sequence[torch.Tensor], saved: Sequence[torch.Tensor], bad: torch.Tensor
) -> None:
    """Copy `saved` into `tensors` if `bad` (bool []), bit for bit, without waiting for the device.

    Works on integer views, with few kernels: NaN times 0 is NaN, but any integer times 0 is 0.
    """
    for size, dtype in _BITS.items():
        new = [t.view(dtype) for t in tensors if t.element_size() == size]
        old = [t.view(dtype) for t in saved if t.element_size() == size]
        if new:
            mask = bad.to(dtype)
            torch._foreach_mul_(new, 1 - mask)
            torch._foreach_mul_(old, mask)
            torch._foreach_add_(new, old)


def _some(files: list[str]) -> str:
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ", ".join(files[:SHOWN]) + more
