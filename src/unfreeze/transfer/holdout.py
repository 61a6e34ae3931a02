"""The validation images: cut once, exactly as `evaluate` will cut them, scored each epoch."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unfreeze.data.dataset import ImageDataset
from unfreeze.data.preprocess import Preprocess
from unfreeze.runtime.processes import Processes
from unfreeze.transfer.evaluate import Scores, score
from unfreeze.transfer.reading import in_order

BATCH = 64


class HoldOut:
    """Scores of `network` on labelled images; inputs stay in memory within `budget` bytes.

    Several processes take its batches in turn, and each knows the scores of all.
    """

    def __init__(
        self,
        images: ImageDataset,
        preprocess: Preprocess,
        *,
        prepare: Callable[[Tensor], Tensor],
        budget: int,
        processes: Processes | None = None,
    ) -> None:
        self.images, self.preprocess = images, preprocess
        self.prepare, self.processes = prepare, processes or Processes()
        self.labels = torch.from_numpy(images.index.labels).long()
        self.holds = len(images) * preprocess.image_size**2 * 3 <= budget
        self.held: list[Tensor] = []
        self.logits: Tensor | None = None  # of the last scores, in the first process

    @torch.inference_mode()
    def score(self, network: nn.Module) -> Scores:
        """Scores in evaluation mode; each module is back in its own mode afterwards."""
        training = network.training
        network.eval()
        device = next(network.parameters()).device
        # in full precision, as `evaluate` does
        own = self.processes.together(
            lambda: [network(self.prepare(b.to(device))).cpu() for b in self._batches()]
        )
        network.train(training)
        turns = itertools.zip_longest(*self.processes.collected(own))
        logits = [batch for turn in turns for batch in turn if batch is not None]
        return self.judged(torch.cat(logits))

    def judged(self, logits: Tensor) -> Scores:
        """Scores of logits [N, C] of all its images, in their order."""
        self.logits = logits.cpu()
        return score(self.logits, self.labels, self.images.index.classes)

    def record(self, network: nn.Module) -> dict[str, Any]:
        """The numbers of a validation line."""
        return recorded(self.score(network))

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """Inputs uint8 [B, S, S, 3] in order from position `start` on, `BATCH` at a time."""
        yield from self._read(range(start, len(self.images)))

    def _batches(self) -> Iterator[Tensor]:
        """Those of this process."""
        if self.held:
            yield from self.held
            return
        count, world = len(self.images), self.processes.world
        places = [
            place
            for first in range(self.processes.rank * BATCH, count, world * BATCH)
            for place in range(first, min(first + BATCH, count))
        ]
        for batch in self._read(places):
            if self.holds:
                self.held.append(batch)
            yield batch

    def _read(self, places: Iterable[int]) -> Iterator[Tensor]:
        reads = (partial(self.images.__getitem__, place) for place in places)
        yield from in_order(reads, self.preprocess, batch_size=BATCH)


def recorded(found: Scores) -> dict[str, Any]:
    """What of the scores stands in a validation line."""
    return {
        "accuracy": found.accuracy,
        "correct": found.correct,
        "total": found.n,
        "loss": found.loss,
        "balanced_accuracy": found.balanced_accuracy,
        "macro_f1": found.macro_f1,
    }
