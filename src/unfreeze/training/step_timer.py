"""Loss, step times and throughput of the steps since the last training record."""

import time
from collections.abc import Callable

import torch


class StepMeter:
    """Accumulates the loss on its device and seconds on the host; read once per interval.

    `over`: reduces the summed loss over several processes.
    """

    def __init__(self, over: Callable[[torch.Tensor], torch.Tensor] = lambda own: own) -> None:
        self.over = over
        self.last = 0.0  # seconds of the last step, including its data
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self.loss: torch.Tensor | None = None
        self.steps = self.images = 0
        self.seconds_data = self.seconds_step = 0.0
        self._mark = time.perf_counter()

    def data_ready(self) -> None:
        """Count the time since the last mark as waiting for data."""
        self.last = self._lap()
        self.seconds_data += self.last

    def step_done(self, loss: torch.Tensor, images: int) -> None:
        """Count the time since `data_ready` as a step, with its loss and number of images."""
        loss = loss.detach()
        self.loss = loss if self.loss is None else self.loss + loss
        self.steps += 1
        self.images += images
        lap = self._lap()
        self.seconds_step += lap
        self.last += lap

    def skip(self) -> None:
        """Ignore the time since the last mark."""
        self._lap()

    def read(self) -> dict[str, float]:
        """The interval's mean loss and rates; synchronises with the device and resets."""
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


def is_record_due(step: int, *, first: int = 100, every: int = 50) -> bool:
    """Whether step `step` (counted from 1) writes a training record."""
    return step <= first or step % every == 0
