"""Swapped prediction loss: each view predicts the codes of the others (paper, equations 1, 2)."""

from collections.abc import Sequence

import torch

from unfreeze.errors import UsageError


def swapped_prediction_loss(
    scores: Sequence[torch.Tensor],
    codes: Sequence[torch.Tensor],
    assign_views: Sequence[int],
    *,
    temperature: float = 0.1,
) -> torch.Tensor:
    """Cross-entropy between codes and predictions, a scalar, computed in at least float32.

    `scores`: `[B, K]` for each view. `codes`: `[B, K]` for each view in `assign_views`.
    Mean over the assigned views, for each of them over all other views, and over B.
    An untrained network has a loss near ln K.
    """
    if len(scores) < 2 or len(codes) != len(assign_views):
        raise UsageError(
            f"Got {len(scores)} views and {len(codes)} codes for views {list(assign_views)}: the "
            "loss needs at least two views and one code per assigned view."
        )
    log_p = [
        (s.to(torch.promote_types(s.dtype, torch.float32)) / temperature).log_softmax(dim=1)
        for s in scores
    ]
    total = log_p[0].new_zeros(())
    for i, Q in zip(assign_views, codes, strict=True):
        # Q is the same in every term: sum the predictions first, then multiply once
        others = sum(p for v, p in enumerate(log_p) if v != i)
        total = total - (Q * others).sum(dim=1).mean() / (len(scores) - 1)
    return total / len(assign_views)
