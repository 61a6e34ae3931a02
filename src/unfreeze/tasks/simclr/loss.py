"""NT-Xent, the loss of SimCLR (arXiv 2002.05709, equation 1)."""

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE_VIEWS = 2  # the large crops: every pair of views has at least one of them


def nt_xent(features: Sequence[Tensor], temperature: float) -> Tensor:
    """The loss, a scalar, of unit features `[N, d]` of each view: a mean over pairs and images.

    A view's positive is the other view of its image; its negatives are the 2N - 2 features of the
    other images in both views. With more than two views, the mean over all pairs that have a
    large one. Identical features give ln(2N - 1).
    """
    pairs = [(i, j) for i, j in combinations(range(len(features)), 2) if i < LARGE_VIEWS]
    losses = [_pair_loss(features[i], features[j], temperature) for i, j in pairs]
    return torch.stack(losses).mean()


def _pair_loss(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    both = torch.cat([a, b])  # [2N, d]
    scores = both @ both.T / temperature
    itself = torch.eye(len(both), dtype=torch.bool, device=both.device)
    positives = torch.arange(len(both), device=both.device).roll(len(a))
    return F.cross_entropy(scores.masked_fill(itself, -torch.inf), positives)
