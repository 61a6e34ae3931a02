"""What training with labels measured since its last line: kept on the device until it is read."""

import math

import torch
from torch import Tensor

from unfreeze.errors import DivergedError
from unfreeze.runtime.meter import Meter
from unfreeze.transfer.step import Taken


class LabelMeter(Meter):
    """Also counts hits, and keeps each step's loss so that the one that broke can be named."""

    def reset(self) -> None:
        """Start a new interval now."""
        super().reset()
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.last_step = 0

    def take(self, step: int, taken: Taken) -> None:
        """Take in step `step` (from 1), queued or done."""
        self.losses.append(taken.loss)
        self.hits.append((taken.logits.argmax(dim=1) == taken.labels).sum())
        self.last_step = step
        self.step_done(taken.loss, taken.images)

    def read(self) -> dict[str, float]:
        """The line's numbers; waits for the device. DivergedError names the step that broke."""
        total, correct = self.images, int(self.over(torch.stack(self.hits).sum()))
        self._check(self.over(torch.stack(self.losses)).tolist())
        shares = {"accuracy": correct / total, "correct": correct, "total": total}
        return {**super().read(), **shares}

    def _check(self, losses: list[float]) -> None:
        for step, loss in enumerate(losses, self.last_step - len(losses) + 1):
            if not math.isfinite(loss):
                raise diverged(f"The loss was {loss} at step {step}.")


def diverged(sentence: str) -> DivergedError:
    """What went wrong, with what helps."""
    return DivergedError(sentence, "Lower --lr, add --warmup-epochs, or use --precision fp32.")
