"""SwAV's codes: Sinkhorn over the batch of all processes and, once it is in use, the queue."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.loading.loader import Batch
from unfreeze.swav.loss import swapped_prediction_loss
from unfreeze.swav.presets import epsilon_of
from unfreeze.swav.queue import FeatureQueue
from unfreeze.swav.sinkhorn import sinkhorn

if TYPE_CHECKING:
    from unfreeze.swav.trainer import PretrainTrainer


Scores = Callable[[torch.Tensor], torch.Tensor]  # unit features [B, d] -> cosines [B, K]


class Assignment:
    """Codes for each batch, and the loss of predicting them."""

    bank: FeatureQueue | None = None  # this process's share of the queue

    def begin(self, trainer: "PretrainTrainer") -> None:
        """Called before the first step of a run, also after a resume."""

    def turn(self, trainer: "PretrainTrainer", epoch: int) -> None:
        """Called before each step; `epoch` is the step's."""

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

    def state(self) -> dict[str, Any]:
        """State for a checkpoint besides the queue's features. Collective."""
        return {}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore `state()`: its tensors are on the CPU and are used on `device`."""


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
        world: int = 1,
        temperature: float = 0.1,
        alone: bool = False,
    ) -> None:
        self.assigned, self.epsilon, self.iterations = tuple(assigned), epsilon, iterations
        self.temperature = temperature
        self.alone = alone  # codes of this process's batch only
        self.length, self.opens = length // world, opens

    @classmethod
    def of(cls, s: PretrainSettings, world: int) -> "SinkhornAssignment":
        """Build from resolved settings for one of `world` processes."""
        return cls(
            s.crops_for_assign,
            epsilon=epsilon_of(s),
            iterations=s.sinkhorn_iterations,
            length=s.queue_length or 0,
            opens=s.epoch_queue_starts or 0,
            world=world,
            temperature=s.temperature,
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
        bank = self.opened(batch.epoch, features[0])
        codes = []
        for index, view in enumerate(self.assigned):
            C = scores[view].detach()
            B = len(C)
            if bank is not None and bank.full:
                C = torch.cat([C, rescored(bank.features[index])])
            codes.append(self.balanced(C)[:B])
        if bank is not None:
            bank.push([features[view] for view in self.assigned])
        return codes

    def loss(self, scores: Sequence[torch.Tensor], codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """The swapped prediction loss."""
        return swapped_prediction_loss(scores, codes, self.assigned, temperature=self.temperature)

    def balanced(self, C: torch.Tensor) -> torch.Tensor:
        """Sinkhorn's codes `[B, K]` of scores `[B, K]`."""
        return sinkhorn(C, epsilon=self.epsilon, iterations=self.iterations, alone=self.alone)

    def opened(self, epoch: int, like: torch.Tensor) -> FeatureQueue | None:
        """The queue, created when its start epoch is reached; None before, or without a queue."""
        if self.bank is None and self.length and epoch >= self.opens:
            self.bank = FeatureQueue(len(self.assigned), self.length, like.shape[1]).to(like)
        return self.bank


def with_queueless_codes(trainer: "PretrainTrainer") -> "PretrainTrainer":
    """The trainer with codes that need neither a queue nor a memory of all images.

    For benchmark steps: queue and memory need earlier epochs, and their cost is negligible.
    """
    s = trainer.s
    codes = SinkhornAssignment(
        s.crops_for_assign,
        epsilon=epsilon_of(s),
        iterations=s.sinkhorn_iterations,
        alone=True,  # one process may measure while the others wait
    )
    trainer.assigner = trainer.finite.assigner = codes
    return trainer
