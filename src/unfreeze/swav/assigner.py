"""Codes for a step: Sinkhorn over the batch of all processes and the bank, once that serves."""

from collections.abc import Callable, Sequence

import torch

from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.bank import Bank
from unfreeze.swav.sinkhorn import sinkhorn

Scores = Callable[[torch.Tensor], torch.Tensor]  # unit features [B, d] -> cosines [B, K]


class Assigner:
    """Codes of the views `assigned`; owns the bank of `length` features for each of them.

    `length` is global; this process keeps its share of it, the rows of its own share of the last
    batches, so that the rows of all processes together are those of one.
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
    ) -> None:
        self.assigned, self.epsilon, self.iterations = tuple(assigned), epsilon, iterations
        self.length, self.opens = length // world, opens
        self.bank: Bank | None = None

    @classmethod
    def of(cls, s: PretrainSettings, world: int) -> "Assigner":
        """The one that a plan's settings ask for."""
        return cls(
            s.crops_for_assign,
            epsilon=s.epsilon,
            iterations=s.sinkhorn_iterations,
            length=s.queue_length or 0,
            opens=s.epoch_queue_starts or 0,
            world=world,
        )

    @torch.no_grad()
    def codes(
        self,
        features: Sequence[torch.Tensor],
        scores: Sequence[torch.Tensor],
        rescored: Scores,
        epoch: int,
    ) -> list[torch.Tensor]:
        """`[B, K]` for each assigned view, from `[B, d]` and `[B, K]` for every view.

        `rescored` gives the bank's features their scores by the prototypes of today.
        """
        bank = self.opened(epoch, features[0])
        codes = []
        for place, view in enumerate(self.assigned):
            C = scores[view].detach()
            B = len(C)
            if bank is not None and bank.full:
                C = torch.cat([C, rescored(bank.features[place])])
            codes.append(sinkhorn(C, epsilon=self.epsilon, iterations=self.iterations)[:B])
        if bank is not None:
            bank.push([features[view] for view in self.assigned])
        return codes

    def opened(self, epoch: int, like: torch.Tensor) -> Bank | None:
        """The bank once its epoch has come; None before, or where there is none."""
        if self.bank is None and self.length and epoch >= self.opens:
            self.bank = Bank(len(self.assigned), self.length, like.shape[1]).to(like)
        return self.bank
