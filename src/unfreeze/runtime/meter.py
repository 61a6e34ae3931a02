"""Times and sums over the steps since the last line: what a training record is made of."""

import time
from collections.abc import Callable

import torch


class Meter:
    """Sums the loss on its device and the host's seconds; read on a cadence, never each step.

    `over` makes one loss of those of several processes.
    """

    def __init__(self, over: Callable[[torch.Tensor], torch.Tensor] = lambda own: own) -> None:
        self.over = over
        self.last = 0.0  # seconds of the last step with its data
        self.reset()

    def reset(self) -> None:
        """Start a new interval now."""
        self.loss: torch.Tensor | None = None
        self.steps = self.images = 0
        self.seconds_data = self.seconds_step = 0.0
        self._mark = time.perf_counter()

    def data_ready(self) -> None:
        """The batch is here: what passed since the last mark was waiting for data."""
        self.last = self._lap()
        self.seconds_data += self.last

    def step_done(self, loss: torch.Tensor, images: int) -> None:
        """The step is queued or done: what passed since `data_ready` was the step."""
        loss = loss.detach()
        self.loss = loss if self.loss is None else self.loss + loss
        self.steps += 1
        self.images += images
        lap = self._lap()
        self.seconds_step += lap
        self.last += lap

    def skip(self) -> None:
        """What passed since the last mark counts for nothing."""
        self._lap()

    def read(self) -> dict[str, float]:
        """Mean loss and rates of the interval (waits for the device), then a new interval."""
        loss = float(self.over(self.loss)) / self.steps if self.loss is not None else float("nan")
        self.seconds_step += self._lap()
        seconds = self.seconds_data + self.seconds_step
        record = {
            "loss": loss,
            "images_per_second": self.images / max(seconds, 1e-9),
            "seconds_data": self.seconds_data / max(1, self.steps),
            "seconds_step": self.seconds_step / max(1, self.steps),
        }
        self.reset()
        return record

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self._mark = now - self._mark, now
        return lap


def due(step: int, *, first: int = 100, every: int = 50) -> bool:
    """Whether step `step` (counted from 1) writes a training record."""
    return step <= first or step % every == 0
