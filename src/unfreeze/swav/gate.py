"""When the queue may serve, and whether it may go on serving (`--queue-start auto`).

Old features are of use once the network moves slowly. Measured on what is there anyway: how far
the predictions of the batch are from those of the oldest batch in the queue, beside how far they
are from those of the batch just before. Two batches differ by their images, so the second
distance is what the first would be if nothing moved. And a queue is dropped if the loss climbs
under it: not the loss with the queue, whose codes are others, but the one of codes from the batch
alone, before and after.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

SETTLED = 1.1  # the oldest batch is at most this many times as far as the last one
CLIMB = 0.02  # share of ln K that the loss of the batch's own codes may rise
PATIENCE = 2  # epochs in which it may come back

Mean = Callable[[torch.Tensor], torch.Tensor]  # over the processes


class Gate:
    """Opens for the queue between the epochs `earliest` and `latest`; shuts for good if it harms.

    Epochs count from 0; `chance` is ln K. Judged where an epoch turns; `say` gets the sentence.
    """

    def __init__(
        self,
        *,
        earliest: int,
        latest: int,
        chance: float,
        mean: Mean = lambda own: own,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.earliest, self.latest = min(earliest, latest), latest
        self.chance, self.mean, self.say = chance, mean, say
        self.opened: int | None = None  # in which epoch
        self.dropped = False
        self.before = 0.0  # the loss of the last epoch without the queue
        self.epoch, self.steps = 0, 0
        self.sums = torch.zeros(3)  # of near and far distances and of the loss, over this epoch
        self.measured = 0

    @property
    def judging(self) -> bool:
        """Whether the loss of the batch's own codes is wanted: before the opening and its trial."""
        trial = self.opened is not None and self.epoch >= self.opened + PATIENCE
        return not (self.dropped or trial)

    def serves(self, epoch: int) -> bool:
        """Whether the queue serves in this epoch; judges the last one when a new one begins."""
        if epoch != self.epoch:
            self._turn(epoch)
            self.epoch, self.steps, self.measured = epoch, 0, 0
            self.sums = torch.zeros_like(self.sums)
        if self.opened is None and not self.latest:
            self.opened, self.before = 0, math.inf  # nothing came before that it could be held to
        return self.opened is not None and not self.dropped

    def moved(self, new: torch.Tensor, near: torch.Tensor, far: torch.Tensor) -> None:
        """Note the distances of mean predictions `[K]`: of this batch, the last, the oldest."""
        new, near, far = self.mean(torch.stack([new, near, far]))
        gaps = torch.stack([(new - near).abs().sum(), (new - far).abs().sum()]) / 2
        self.sums = self.sums.to(gaps.device)
        self.sums[:2] += gaps
        self.measured += 1

    def lost(self, loss: torch.Tensor) -> None:
        """Note a step's loss by the codes of its batch alone."""
        self.sums = self.sums.to(loss.device)
        self.sums[2] += self.mean(loss)
        self.steps += 1

    def _turn(self, epoch: int) -> None:
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
        why = "its epoch has come" if not settled else "features have settled"
        seen = f": its oldest batch is {far:.3f} away, the last one {near:.3f}" if near else ""
        self.say(f"The queue serves from epoch {epoch} on, for {why}{seen}.")

    def _maybe_drop(self, loss: float) -> None:
        risen = (loss - self.before) / self.chance
        if risen <= CLIMB:
            return
        self.dropped = True
        self.say(
            f"The queue is dropped: by the codes of the batch alone the loss was {self.before:.3f} "
            f"before it and is {loss:.3f} after {PATIENCE} epochs with it."
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        names = ("opened", "dropped", "before", "epoch", "steps", "measured")
        return {**{name: getattr(self, name) for name in names}, "sums": self.sums}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        for name, value in state.items():
            setattr(self, name, value.clone() if isinstance(value, torch.Tensor) else value)
