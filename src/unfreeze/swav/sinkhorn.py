"""Codes: which prototypes a batch is assigned to, shared out equally (paper, section 3.1).

Maximise  Tr(Qᵀ C Zᵀ) + ε H(Q)  over the Q whose rows sum to 1/K and columns to 1/B (equations 2-3):
Q* = diag(u) exp(scores / ε) diag(v), found by Sinkhorn-Knopp. Here in the log domain, where no ε
overflows and no row can die.
"""

import torch
import torch.distributed as dist


@torch.no_grad()
def sinkhorn(
    scores: torch.Tensor, *, epsilon: float = 0.05, iterations: int = 3, alone: bool = False
) -> torch.Tensor:
    """Codes `[B, K]` for `scores` `[B, K]`; each row sums to 1.

    Computed in float32 (float64 stays), over the batches of all processes where torch.distributed
    is initialised. After the last iteration rows are exact; prototypes are used equally up to what
    `iterations` rounds reach. `epsilon` is in the units of the scores (cosines). `alone` leaves the
    other processes out.
    """
    L = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon  # [B, K]
    for _ in range(iterations):
        L = L - (
            L.logsumexp(dim=0, keepdim=True) if alone else _logsumexp_over_batch(L)
        )  # every prototype gets the same mass
        L = L - L.logsumexp(dim=1, keepdim=True)  # every picture gets mass 1
    return L.exp()


def _logsumexp_over_batch(L: torch.Tensor) -> torch.Tensor:
    """`[1, K]`: log of the sum over the rows of every process."""
    if not (dist.is_available() and dist.is_initialized()):
        return L.logsumexp(dim=0, keepdim=True)
    peak = L.amax(dim=0, keepdim=True)
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    total = (L - peak).exp().sum(dim=0, keepdim=True)
    dist.all_reduce(total)
    return peak + total.log()
