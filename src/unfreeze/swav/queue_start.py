"""Adaptive queue start (`--queue-start auto`): when to use the queue, and when to drop it.

Old features are useful once the network changes slowly. The measure is the distance between the
mean predictions of the current batch and of the oldest batch in the queue, relative to the distance
to the previous batch. Two batches always differ by their images, so the second distance is what
the first would be for a constant network. The queue is dropped if the loss rises while it is used
(the loss with codes of the batch alone, as codes with the queue are not comparable).
"""

import math
from collections.abc import Callable
from typing import Any

import torch

SETTLED = 1.1  # maximum ratio of the distances to the oldest and to the previous batch
CLIMB = 0.02  # share of ln K that the loss with codes of the batch alone may rise
PATIENCE = 2  # epochs until that is judged

Mean = Callable[[torch.Tensor], torch.Tensor]  # mean over processes


class QueueSchedule:
    """Starts the queue between the epochs `earliest` and `latest`; drops it for good if it harms.

    Epochs count from 0; `chance` is ln K. Decides at the start of an epoch; `say` gets a message.
    """

    def __init__(
        self,
        *,
        earliest: int,
        latest: int,
        chance: float,
        mean: Mean = lambda value: value,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.earliest, self.latest = min(earliest, latest), latest
        self.chance, self.mean, self.say = chance, mean, say
        self.opened: int | None = None  # epoch from which the queue is used
        self.dropped = False
        self.before = 0.0  # mean loss of the last epoch without the queue
        self.epoch, self.steps = 0, 0
        self.sums = torch.zeros(3)  # near, far, loss
        self.measured = 0

    @property
    def judging(self) -> bool:
        """Whether the loss with codes of the batch alone is needed: until the queue is judged."""
        trial = self.opened is not None and self.epoch >= self.opened + PATIENCE
        return not (self.dropped or trial)

    def serves(self, epoch: int) -> bool:
        """Whether the queue is used in this epoch; at a new epoch, judges the last one first."""
        if epoch != self.epoch:
            self._end_epoch(epoch)
            self.epoch, self.steps, self.measured = epoch, 0, 0
            self.sums = torch.zeros_like(self.sums)
        if self.opened is None and not self.latest:
            self.opened, self.before = 0, math.inf  # no epoch without a queue to compare with
        return self.opened is not None and not self.dropped

    def moved(self, new: torch.Tensor, near: torch.Tensor, far: torch.Tensor) -> None:
        """Record distances of mean predictions `[K]`: current, previous and oldest batch."""
        new, near, far = self.mean(torch.stack([new, near, far]))
        gaps = torch.stack([(new - near).abs().sum(), (new - far).abs().sum()]) / 2
        self.sums = self.sums.to(gaps.device)
        self.sums[:2] += gaps
        self.measured += 1

    def lost(self, loss: torch.Tensor) -> None:
        """Record a step's loss with codes of its batch alone."""
        self.sums = self.sums.to(loss.device)
        self.sums[2] += self.mean(loss)
        self.steps += 1

    def _end_epoch(self, epoch: int) -> None:
        if self.dropped or not self.steps:
            return
        loss = float(self.sums[2]) / self.steps
        if self.opened is None:
            self._maybe_open(epoch, loss)
        elif self.epoch == self.opened + PATIENCE - 1:
            self._maybe_drop(loss)

    def _maybe_open(self, epoch: int, loss: float) -> None:
        near, far = (float(gap) / max(1, self.measured) for gap in self.sums[:2])
        settled = self.measured > 0 and far <= SETTLED * near
        if epoch < self.latest and not (settled and epoch >= self.earliest):
            return
        self.opened, self.before = epoch, loss
        why = "features have settled" if settled else "its start epoch is reached"
        distances = f" (distance to the oldest batch {far:.3f}, to the previous {near:.3f})"
        self.say(f"Queue in use from epoch {epoch}: {why}{distances if near else ''}.")

    def _maybe_drop(self, loss: float) -> None:
        risen = (loss - self.before) / self.chance
        if risen <= CLIMB:
            return
        self.dropped = True
        self.say(
            f"Queue dropped: the loss with codes of the batch alone was {self.before:.3f} before "
            f"it and is {loss:.3f} after {PATIENCE} epochs with it."
        )

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        names = ("opened", "dropped", "before", "epoch", "steps", "measured")
        return {**{name: getattr(self, name) for name in names}, "sums": self.sums}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore `state()`."""
        for name, value in state.items():
            setattr(self, name, value.clone() if isinstance(value, torch.Tensor) else value)
