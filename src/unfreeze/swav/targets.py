"""What the views of a batch are to predict: the one thing in which the two methods differ."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from unfreeze.data.loader import Batch
from unfreeze.swav.bank import Bank

if TYPE_CHECKING:
    from unfreeze.swav.trainer import Trainer

Scores = Callable[[torch.Tensor], torch.Tensor]  # unit features [B, d] -> cosines [B, K]


class Targets:
    """Codes for each batch, and the loss of predicting them."""

    bank: Bank | None = None  # rows of the queue that this process keeps

    def begin(self, trainer: "Trainer") -> None:
        """Whatever is needed before the first step of a run or of its resumption."""

    def turn(self, trainer: "Trainer", epoch: int) -> None:
        """Called before each step; `epoch` is the step's."""

    def codes(
        self,
        features: Sequence[torch.Tensor],
        scores: Sequence[torch.Tensor],
        rescored: Scores,
        batch: Batch,
    ) -> list[torch.Tensor]:
        """Codes `[B, K]`, from unit features `[B, d]` and scores of every view of a batch.

        `rescored` gives other features their scores by the prototypes of today.
        """
        raise NotImplementedError

    def loss(self, scores: Sequence[torch.Tensor], codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss, a scalar, of scores for each view."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the bank. Collective."""
        return {}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """The reverse of `state`, whose tensors are on the CPU; `device` is where they are used."""
