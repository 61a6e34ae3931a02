"""Losses of independent yes-or-no decisions, one for each class."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unfreeze.errors import UsageError

DEFAULT = "bce"
FOCUS, MARGIN = 4.0, 0.05  # of the asymmetric loss, as its authors use them on MS-COCO
HIGHEST = 100.0  # weight of a label's images, at most


def bce(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Binary cross-entropy [B, C]; `weights` [C]: of the images that have a label."""
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")


def asymmetric(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Asymmetric loss [B, C] (Ridnik et al., arXiv 2009.14119, equations 4 to 7).

    Images without a label count less the surer the network is: their probability is lowered by
    MARGIN and the loss multiplied by its power FOCUS. Those with it: as in `bce`.
    """
    positive = targets * F.logsigmoid(logits)
    if weights is not None:
        positive = positive * weights
    shifted = (logits.sigmoid() - MARGIN).clamp(min=0)
    negative = (1 - targets) * shifted**FOCUS * torch.log1p(-shifted)
    return -(positive + negative)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "bce": bce,
    "asymmetric": asymmetric,
}


def loss_function(name: str) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The loss of `--loss`; UsageError for another name."""
    if name not in LOSSES:
        raise UsageError(
            f"The task multilabel has no --loss {name}.", f"Choose from: {', '.join(LOSSES)}."
        )
    return LOSSES[name]


def positive_weights(targets: Tensor, kind: str) -> list[float]:
    """Weight of each label's images by targets [N, C] (NaN: unknown); [] if all weigh 1.

    `balanced`: the images without the label divided by those with it, at most HIGHEST; `sqrt`: its
    square root.
    """
    if kind == "none":
        return []
    have: Any = (targets == 1).sum(dim=0).double()
    lack = (targets == 0).sum(dim=0).double()
    weights = (lack / have.clamp(min=1)).clamp(1 / HIGHEST, HIGHEST)
    values: list[float] = (weights.sqrt() if kind == "sqrt" else weights).tolist()
    return values
