"""Steps with numbers only: any other changes nothing, and the files of its batch are named."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from unfreeze.data.loader import Loader
from unfreeze.errors import DivergedError
from unfreeze.runtime.console import Console, Quiet
from unfreeze.runtime.processes import Processes
from unfreeze.runtime.runfolder import RunFolder
from unfreeze.swav.targets import Targets

IN_A_ROW = 20  # steps left out; fp16 needs some of them to find its scale
SHOWN = 3  # files that the console names; log.txt and metrics.jsonl name all
_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


class Finite:
    """Watches each step of a trainer: `begin` before it looks, `update`, then `done`.

    Where the host knows at once (`prompt`) a bad step is left out. Elsewhere it does not wait: the
    device itself puts back what the step moved, and the host hears of it with the next record.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        assigner: Targets,
        *,
        prompt: bool,
        loader: Loader,
        run: RunFolder,
        processes: Processes,
    ) -> None:
        self.model, self.optimizer, self.assigner = model, optimizer, assigner
        self.prompt, self.loader, self.run, self.processes = prompt, loader, run, processes
        self.console: Console = Quiet()
        self.skipped = self.in_a_row = 0
        self._open: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # step, loss, whether bad

    def begin(self) -> None:
        """Remember what looking at a batch changes: running statistics and the queue."""
        self._buffers = [buffer.detach().clone() for buffer in self.model.buffers()]
        bank = self.assigner.bank
        self._served = bank is not None and bank.full
        self._bank = (bank, bank.features, bank.filled) if bank is not None else None

    def update(self, step: Callable[[], Any]) -> None:
        """Call the optimizer's `step`; with a gradient that is not a number nothing has changed."""
        self.bad = self.judged()
        if not self.waits:
            self._on_the_device(step)
        elif not bool(self.bad):
            step()
        else:
            for buffer, before in zip(self.model.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
            self._put_back_the_queue()

    def judged(self) -> torch.Tensor:
        """Whether any gradient is not a number: bool [], the same in every process."""
        norms = torch._foreach_norm([p.grad for p in self._learning() if p.grad is not None])
        return ~torch.stack(norms).isfinite().all()

    @property
    def waits(self) -> bool:
        """Whether the host asks before this update: always, or while something still begins."""
        begun = all(p in self.optimizer.state for p in self._learning())
        filling = self.assigner.bank is not None and not self._served
        return self.prompt or not begun or filling

    def done(self, step: int, loss: torch.Tensor) -> None:
        """Step `step` (from 0) is made; a bad one is dealt with now, where it is known."""
        self._open.append((step, loss.detach(), self.bad))
        if self.prompt and bool(self.bad):
            self.read()

    def read(self) -> None:
        """Take in the steps since the last reading; waits for the device. Collective.

        DivergedError where a loss is not a number, or too many steps in a row were left out.
        """
        if not self._open:
            return
        steps, losses, flags = zip(*self._open, strict=True)
        self._open.clear()
        means = self.processes.mean(torch.stack(losses)).tolist()
        for step, loss, bad in zip(steps, means, torch.stack(flags).tolist(), strict=True):
            if not math.isfinite(loss):
                self._tell(step, f"the loss was {loss}")
                raise self._diverged(f"The loss was {loss} at step {step + 1}", step)
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad:
                self._left_out(step)

    def _left_out(self, step: int) -> None:
        self.skipped += 1
        files = self._tell(step, "a gradient was not a number and the step was left out")
        if self.skipped == 1:
            self.console.warn(
                f"Step {step + 1} was left out: a gradient was not a number. Its images: "
                f"{_some(files)}. log.txt names those of every such step."
            )
        if self.in_a_row > IN_A_ROW:
            raise self._diverged(
                f"{self.in_a_row} steps in a row had gradients that are not numbers, the last is "
                f"step {step + 1}",
                step,
            )
        if not self.prompt:
            self._uncount()

    def _tell(self, step: int, what: str) -> list[str]:
        """The step in metrics.jsonl and log.txt, with its images."""
        files = self.loader.paths(step)
        place = {"step": step + 1, "epoch": step // self.loader.steps_per_epoch}
        self.run.metric({**place, "split": "skipped", "reason": what, "files": files})
        self.run.log(f"step {step + 1}: {what}; its images: {', '.join(files)}")
        return files

    def _diverged(self, what: str, step: int) -> DivergedError:
        return DivergedError(
            f"{what} (images: {_some(self.loader.paths(step))}).",
            "The last checkpoint is whole; log.txt names every image of that step. Lower "
            "--base-lr, or use --precision fp32.",
        )

    def _on_the_device(self, step: Callable[[], Any]) -> None:
        moved = list(self._moved())
        before = [tensor.detach().clone() for tensor in moved]
        step()
        choose(moved, before, self.bad)
        choose(list(self.model.buffers()), self._buffers, self.bad)
        if self._bank is not None:
            bank, features, _ = self._bank
            bank.features = torch.where(self.bad, features, bank.features)

    def _put_back_the_queue(self) -> None:
        self.assigner.bank = None
        if self._bank is not None:
            bank, features, filled = self._bank
            bank.features, bank.filled = features, filled
            self.assigner.bank = bank

    def _learning(self) -> Iterator[torch.Tensor]:
        for group in self.optimizer.param_groups:
            yield from (p for p in group["params"] if p.grad is not None)

    def _moved(self) -> Iterator[torch.Tensor]:
        """What the optimizer's step changes on the device."""
        for p in self._learning():
            yield p
            kept = self.optimizer.state[p].values()
            yield from (v for v in kept if torch.is_tensor(v) and v.device == p.device)

    def _uncount(self) -> None:
        """Take one step back where the optimizer counted it on the host."""
        for p, state in self.optimizer.state.items():
            count = state.get("step")
            if torch.is_tensor(count) and count.device != p.device:
                count -= 1


@torch.no_grad()
def choose(
    moved: Sequence[torch.Tensor], before: Sequence[torch.Tensor], bad: torch.Tensor
) -> None:
    """Put `before` into `moved` if `bad` (bool []), to the bit, without asking the device.

    By bits and few kernels: NaN times 0 is NaN, but any bits times 0 are 0.
    """
    for size, kind in _BITS.items():
        new = [t.view(kind) for t in moved if t.element_size() == size]
        old = [t.view(kind) for t in before if t.element_size() == size]
        if new:
            share = bad.to(kind)
            torch._foreach_mul_(new, 1 - share)
            torch._foreach_mul_(old, share)
            torch._foreach_add_(new, old)


def _some(files: list[str]) -> str:
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ", ".join(files[:SHOWN]) + more
