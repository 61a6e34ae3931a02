"""Base class of the assignment methods: what the views of a batch are trained to predict."""

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

    bank: Bank | None = None  # this process's share of the queue

    def begin(self, trainer: "Trainer") -> None:
        """Called before the first step of a run, also after a resume."""

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
