"""SwAV's codes: Sinkhorn over the batch of all processes and, once it is in use, the queue."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.loading.loader import Batch, Loader
from unfreeze.runtime.distributed import Distributed
from unfreeze.swav.loss import swapped_prediction_loss
from unfreeze.swav.presets import epsilon_of
from unfreeze.swav.queue import FeatureQueue
from unfreeze.swav.sinkhorn import sinkhorn

Scores = Callable[[torch.Tensor], torch.Tensor]  # unit features [B, d] -> cosines [B, K]
# views of a batch -> unit features [B, d] of each, without gradient
Features = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]


class Assignment:
    """Codes for each batch, and the loss of predicting them."""

    queue: FeatureQueue | None = None  # this process's share of the queue

    def begin(self, loader: Loader, features: Features) -> None:
        """Called before the first step of a run, also after a resume."""

    def prototypes(self, epoch: int) -> torch.Tensor | None:
        """Prototypes `[K, d]` to use from this step on, None for those that are trained.

        Called before each step; `epoch` is the step's.
        """
        return None

    def codes(
        self,
        features: Sequence[torch.Tensor],
        scores: Sequence[torch.Tensor],
        rescored: Scores,
        batch: Batch,
    ) -> list[torch.Tensor]:
        """Codes `[B, K]`, from unit features `[B, d]` and scores of every view of a batch.

        `rescored` computes scores of other features with the current prototypes.
        """
        raise NotImplementedError

    def loss(self, scores: Sequence[torch.Tensor], codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss, a scalar, for the scores of each view."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint. Collective."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore `state_dict()`: its tensors are on the CPU and are used on `device`."""
        raise NotImplementedError


class SinkhornAssignment(Assignment):
    """Codes of the views `assigned`; owns the queue of `length` features for each of them.

    `length` is global. Each process stores the features of its share of the last batches, so the
    queues of all processes together hold what a single process would hold.
    """

    def __init__(
        self,
        assigned: Sequence[int],
        *,
        epsilon: float,
        iterations: int,
        length: int = 0,
        opens: int = 0,
        batch_size: int = 0,
        processes: Distributed | None = None,
        temperature: float = 0.1,
        alone: bool = False,
    ) -> None:
        self.assigned, self.epsilon, self.iterations = tuple(assigned), epsilon, iterations
        self.temperature = temperature
        self.alone = alone  # codes of this process's batch only
        self.processes, self.batch_size = processes or Distributed(), batch_size
        self.length, self.opens = length // self.processes.world, opens

    @classmethod
    def of(cls, s: PretrainSettings, processes: Distributed) -> "SinkhornAssignment":
        """Build from complete settings."""
        return cls(
            s.crops_for_assign,
            epsilon=epsilon_of(s),
            iterations=s.sinkhorn_iterations,
            length=s.queue_length or 0,
            opens=s.epoch_queue_starts or 0,
            batch_size=s.batch_size or 0,
            processes=processes,
            temperature=s.temperature,
        )

    @classmethod
    def without_queue(cls, s: PretrainSettings) -> "SinkhornAssignment":
        """Codes of this process's batch alone, which need no earlier step: for measuring steps."""
        return cls(
            s.crops_for_assign,
            epsilon=epsilon_of(s),
            iterations=s.sinkhorn_iterations,
            temperature=s.temperature,
            alone=True,
        )

    @torch.no_grad()
    def codes(
        self,
        features: Sequence[torch.Tensor],
        scores: Sequence[torch.Tensor],
        rescored: Scores,
        batch: Batch,
    ) -> list[torch.Tensor]:
        """Codes `[B, K]` of each assigned view, from features `[B, d]` and scores `[B, K]`."""
        queue = self.opened(batch.epoch, features[0])
        codes = []
        for index, view in enumerate(self.assigned):
            C = scores[view].detach()
            B = len(C)
            if queue is not None and queue.full:
                C = torch.cat([C, rescored(queue.features[index])])
            codes.append(self.balanced(C)[:B])
        if queue is not None:
            queue.push([features[view] for view in self.assigned])
        return codes

    def loss(self, scores: Sequence[torch.Tensor], codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """The swapped prediction loss."""
        return swapped_prediction_loss(scores, codes, self.assigned, temperature=self.temperature)

    def balanced(self, C: torch.Tensor) -> torch.Tensor:
        """Sinkhorn's codes `[B, K]` of scores `[B, K]`."""
        return sinkhorn(C, epsilon=self.epsilon, iterations=self.iterations, alone=self.alone)

    def opened(self, epoch: int, like: torch.Tensor) -> FeatureQueue | None:
        """The queue, created when its start epoch is reached; None before, or without a queue."""
        if self.queue is None and self.length and epoch >= self.opens:
            self.queue = FeatureQueue(len(self.assigned), self.length, like.shape[1]).to(like)
        return self.queue

    def state_dict(self) -> dict[str, Any]:
        """The queue of all processes in single-process order: by batch, then by rank."""
        queue, world = self.queue, self.processes.world
        if queue is None:
            return {"queue": None, "filled": 0}
        B = self.batch_size // world
        parts = torch.stack(self.processes.gather(queue.features))  # [ranks, views, length, width]
        ranks, views, length, width = parts.shape
        batches = parts.view(ranks, views, length // B, B, width)
        features = batches.permute(1, 2, 0, 3, 4).reshape(views, -1, width)
        return {"queue": features, "filled": queue.filled * world}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore the rows of `state_dict()` that belong to this process."""
        self.queue, features = None, state["queue"]
        if features is None:
            return
        rank, world = self.processes.rank, self.processes.world
        views, _, width = features.shape
        batches = features.view(views, -1, self.batch_size, width).chunk(world, dim=2)
        rows = batches[rank].reshape(views, -1, width)
        self.queue = FeatureQueue(*rows.shape).to(device, rows.dtype)
        self.queue.features.copy_(rows)
        self.queue.filled = state["filled"] // world
