"""Swapped prediction: each view predicts the codes of the others (paper, equations 1 and 2)."""

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
    """The loss, a scalar: cross-entropy of codes and predictions, in float32 at least.

    `scores`: `[B, K]` for each view. `codes`: `[B, K]` for each view in `assign_views`.
    Mean over the assigned views, for each of them over all other views, and over B.
    It starts near ln K.
    """
    if len(scores) < 2 or len(codes) != len(assign_views):
        raise UsageError(
            f"{len(scores)} views and {len(codes)} codes for views {list(assign_views)}: the loss "
            "needs two views at least and one code for each assigned view."
        )
    log_p = [
        (s.to(torch.promote_types(s.dtype, torch.float32)) / temperature).log_softmax(dim=1)
        for s in scores
    ]
    total = log_p[0].new_zeros(())
    for i, Q in zip(assign_views, codes, strict=True):
        # Q is the same in every term, so the predictions are summed before the one product
        others = sum(p for v, p in enumerate(log_p) if v != i)
        total = total - (Q * others).sum(dim=1).mean() / (len(scores) - 1)
    return total / len(assign_views)
