"""Training metrics since the last line of metrics.jsonl, kept on the device until read."""

import math

import torch
from torch import Tensor

from unfreeze.errors import DivergedError
from unfreeze.runtime.meter import Meter
from unfreeze.transfer.step import Taken


class LabelMeter(Meter):
    """Adds accuracy, and stores each step's loss so that the first non-finite one can be named."""

    def reset(self) -> None:
        """Start a new interval."""
        super().reset()
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.last_step = 0

    def take(self, step: int, taken: Taken) -> None:
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
                raise diverged(f"The loss was {loss} at step {step}.")


def diverged(sentence: str) -> DivergedError:
    """DivergedError with the usual remedies as the next step."""
    return DivergedError(sentence, "Lower --lr, add --warmup-epochs, or use --precision fp32.")
