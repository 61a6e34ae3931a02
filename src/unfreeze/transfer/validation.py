"""The validation set: preprocessed once, as in `evaluate`, and scored each epoch."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.runtime.distributed import Distributed
from unfreeze.transfer.evaluate import ClassificationMetrics, classification_metrics
from unfreeze.transfer.predictor import read_in_order

BATCH = 64


class ValidationSet:
    """Scores networks on a labelled dataset; inputs are kept in memory if they fit `budget` bytes.

    Processes share the batches round-robin, and every process gets the scores of all images.
    """

    def __init__(
        self,
        images: ImageDataset,
        preprocess: Preprocess,
        *,
        prepare: Callable[[Tensor], Tensor],
        budget: int,
        processes: Distributed | None = None,
    ) -> None:
        self.images, self.preprocess = images, preprocess
        self.prepare, self.processes = prepare, processes or Distributed()
        self.labels = torch.from_numpy(images.index.labels).long()
        self.holds = len(images) * preprocess.image_size**2 * 3 <= budget
        self.held: list[Tensor] = []
        self.logits: Tensor | None = None  # of the last scores, on rank 0

    @torch.inference_mode()
    def score(self, network: nn.Module) -> ClassificationMetrics:
        """Scores of the network in eval mode; its mode is restored afterwards."""
        training = network.training
        network.eval()
        device = next(network.parameters()).device
        # in full precision, as `evaluate` does
        local = self.processes.on_all_ranks(
            lambda: [network(self.prepare(b.to(device))).cpu() for b in self._batches()]
        )
        network.train(training)
        turns = itertools.zip_longest(*self.processes.gather_objects(local))
        logits = [batch for turn in turns for batch in turn if batch is not None]
        return self.judged(torch.cat(logits))

    def judged(self, logits: Tensor) -> ClassificationMetrics:
        """ClassificationMetrics from logits [N, C] of all images, in dataset order."""
        self.logits = logits.cpu()
        return classification_metrics(self.logits, self.labels, self.images.index.classes)

    def record(self, network: nn.Module) -> dict[str, Any]:
        """Numbers for a validation line of metrics.jsonl."""
        return validation_record(self.score(network))

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """Inputs uint8 [B, S, S, 3] in order from position `start` on, `BATCH` at a time."""
        yield from self._read(range(start, len(self.images)))

    def _batches(self) -> Iterator[Tensor]:
        """Batches of this process."""
        if self.held:
            yield from self.held
            return
        count, world = len(self.images), self.processes.world
        positions = [
            position
            for first in range(self.processes.rank * BATCH, count, world * BATCH)
            for position in range(first, min(first + BATCH, count))
        ]
        for batch in self._read(positions):
            if self.holds:
                self.held.append(batch)
            yield batch

    def _read(self, positions: Iterable[int]) -> Iterator[Tensor]:
        reads = (partial(self.images.__getitem__, position) for position in positions)
        yield from read_in_order(reads, self.preprocess, batch_size=BATCH)


def validation_record(scores: ClassificationMetrics) -> dict[str, Any]:
    """The scores that a validation line of metrics.jsonl contains."""
    return {
        "accuracy": scores.accuracy,
        "correct": scores.correct,
        "total": scores.n,
        "loss": scores.loss,
        "balanced_accuracy": scores.balanced_accuracy,
        "macro_f1": scores.macro_f1,
    }
