"""The fine-tuning task: the loss of a batch of labelled images or of their cached features."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from unfreeze.data.loading.loader import Batch, Loader
from unfreeze.runtime.device import autocast
from unfreeze.runtime.distributed import Distributed
from unfreeze.tasks.base import Forward, Task
from unfreeze.transfer.feature_cache.loader import CachedLoader
from unfreeze.transfer.loss import SupervisedLoss, TrainingConfig, TrainingLoss, seed_step


class LabelledPart(NamedTuple):
    """A part of a batch: inputs of the network, or cached features, and targets.

    `total`: weight of the global batch, by which the loss is divided.
    """

    inputs: Tensor
    targets: Tensor
    total: float


class FinetuneTask(Task):
    """Trains `model` on labels.

    `prepare` maps uint8 [B, S, S, 3] on the model's device to its input. All random numbers of a
    step depend on (seed, step) only, so a resumed run has bit-identical weights to an uninterrupted
    one on the same number of CPU threads.
    """

    adds_losses: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        fit: TrainingConfig,
        *,
        prepare: Callable[[Tensor], Tensor],
        processes: Distributed,
    ) -> None:
        self.model, self.fit, self.prepare, self.processes = model, fit, prepare, processes
        self.device = next(model.parameters()).device
        self.objective = (
            TrainingLoss(fit, self.device) if fit.task is None else SupervisedLoss(fit.task)
        )
        self.cached: CachedLoader | None = None  # features that replace images, while they do
        self._loader: Loader | None = None
        self._reset()

    def _reset(self) -> None:
        self._hits: list[Tensor] = []
        self._seen = 0

    def begin(self, loader: Loader, forward: Forward) -> None:
        """Batches are those of `loader`, also when their features are cached."""
        self._loader = loader

    def begin_step(self, step: int, epoch: int) -> None:
        """Seed the random numbers of the step."""
        seed_step(self.fit.seed, step, self.device, self.processes.rank)

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """There is nothing to restore; counts for the next training record begin anew."""
        self._reset()

    def split_batch(self, batch: Batch, count: int, forward: Forward) -> Sequence[LabelledPart]:
        """Inputs and targets, with MixUp and CutMix over the whole batch, in equal parts."""
        if self._loader is None:
            raise RuntimeError("begin() was not called")
        labels = batch.target.to(self.device, non_blocking=True)
        inputs, targets = self.objective.mixed(self._inputs(batch), labels)
        global_batch = self._loader.batch(batch.step)
        total = self.objective.total(self._loader.dataset.targets[global_batch])
        count = number_of_parts(len(global_batch), self.processes.world, count)
        self._seen += len(global_batch)
        self._labels, self._outputs = labels, list[Tensor]()
        pairs = zip(*(t.tensor_split(count) for t in (inputs, targets)), strict=True)
        return [LabelledPart(part, target, total) for part, target in pairs]

    def _inputs(self, batch: Batch) -> Tensor:
        if self.cached is not None:
            return batch.views[0]
        return self.prepare(batch.views[0].to(self.device, non_blocking=True))

    def part_loss(self, part: LabelledPart, forward: Forward) -> Tensor:
        """The part's share of the loss of the global batch."""
        network = self.model if self.cached is None else self.cached.split_point.after
        with autocast(self.device, self.fit.precision):
            logits = network(part.inputs)
        if self.fit.task is None:
            self._outputs.append(logits.detach())
        return self.objective.loss(logits, part.targets, part.total)

    def before_update(self, step: int) -> None:
        """Count correct predictions, on the device."""
        if self.fit.task is not None:
            return
        self._hits.append((torch.cat(self._outputs).argmax(dim=1) == self._labels).sum())

    def metrics(self) -> dict[str, float]:
        """Accuracy over the images since the last training record; else only their number."""
        total, hits = self._seen, self._hits
        self._reset()
        if self.fit.task is not None:
            return {"total": total}
        correct = int(self.processes.sum(torch.stack(hits).sum()))
        return {"accuracy": correct / total, "correct": correct, "total": total}


def number_of_parts(images: int, processes: int, wanted: int) -> int:
    """Gradient accumulation steps: `wanted`, or fewer so that each part has at least two images.

    The same on all processes although their shares may differ by one image, because synchronised
    batch norms communicate in every part; batch norm cannot train on a single image.
    """
    return min(wanted, max(1, images // processes // 2))
