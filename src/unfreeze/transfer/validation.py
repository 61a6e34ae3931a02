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
from unfreeze.tasks.supervised import SupervisedTask
from unfreeze.transfer.evaluate import Scores, classification_metrics, task_metrics
from unfreeze.transfer.predictor import batch_outputs, read_in_order

BATCH = 64
MAPS_BATCH = 8  # of networks whose outputs are maps, which need more memory


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
        task: SupervisedTask | None = None,
    ) -> None:
        self.task = task
        self.batch_size = MAPS_BATCH if task is not None and task.dense else BATCH
        tiles = preprocess.fit == "tile"
        if tiles:  # images have different sizes
            self.batch_size = 1
        self.images, self.preprocess = images, preprocess
        self.prepare, self.processes = prepare, processes or Distributed()
        self.labels = torch.from_numpy(images.index.labels).long()
        if task is not None:
            classes = images.index.classes
            self.labels = task.targets([classes[label] for label in self.labels.tolist()])
        height, width = preprocess.shape
        size = 8 * preprocess.image_size if preprocess.fit == "text" else height * width * 3
        self.holds = not tiles and len(images) * size <= budget
        self.held: list[tuple[list[int], Tensor]] = []
        self.logits: Tensor | None = None  # of the last scores, on rank 0

    @torch.inference_mode()
    def score(self, network: nn.Module) -> Scores:
        """Scores of the network in eval mode; its mode is restored afterwards."""
        training = network.training
        network.eval()
        device = next(network.parameters()).device
        # in full precision, as `evaluate` does
        local = self.processes.on_all_ranks(
            lambda: [
                self._kept(
                    batch_outputs(
                        lambda pixels: network(self.prepare(pixels.to(device))),
                        batch,
                        self.preprocess,
                    ),
                    positions,
                )
                for positions, batch in self._batches()
            ]
        )
        network.train(training)
        turns = itertools.zip_longest(*self.processes.gather_objects(local))
        logits = [batch for turn in turns for batch in turn if batch is not None]
        return self.scores_of(torch.cat(logits))

    def _kept(self, outputs: Tensor, positions: list[int]) -> Tensor:
        """What is kept of the outputs of a batch, on the CPU."""
        if self.task is None:
            return outputs.cpu()
        return self.task.summarize(outputs, self.labels[positions])

    def scores_of(self, logits: Tensor) -> Scores:
        """Scores from outputs [N, C] (or what the task keeps) of all images, in dataset order."""
        self.logits = logits.cpu()
        if self.task is not None:
            return task_metrics(self.task, self.logits, self.labels)
        return classification_metrics(self.logits, self.labels, self.images.index.classes)

    def record(self, network: nn.Module) -> dict[str, Any]:
        """Numbers for a validation line of metrics.jsonl."""
        return self.score(network).record()

    def batches(self, start: int = 0) -> Iterator[Tensor]:
        """Inputs uint8 [B, S, S, 3] in order from position `start` on, in batches."""
        yield from self._read(range(start, len(self.images)))

    def _batches(self) -> Iterator[tuple[list[int], Tensor]]:
        """Batches of this process, with the positions of their images."""
        if self.held:
            yield from self.held
            return
        count, world, size = len(self.images), self.processes.world, self.batch_size
        positions = [
            position
            for first in range(self.processes.rank * size, count, world * size)
            for position in range(first, min(first + size, count))
        ]
        for number, batch in enumerate(self._read(positions)):
            entry = positions[number * size : (number + 1) * size], batch
            if self.holds:
                self.held.append(entry)
            yield entry

    def _read(self, positions: Iterable[int]) -> Iterator[Tensor]:
        reads = (partial(self.images.__getitem__, position) for position in positions)
        yield from read_in_order(reads, self.preprocess, batch_size=self.batch_size)
