"""Codes: which prototypes a batch is assigned to, shared out equally (paper, section 3.1).

Maximise  Tr(Qᵀ C Zᵀ) + ε H(Q)  over the Q whose rows sum to 1/K and columns to 1/B (equations 2-3):
Q* = diag(u) exp(scores / ε) diag(v), found by Sinkhorn-Knopp. Here in the log domain, where no ε
overflows and no row can die.
"""

import torch
import torch.distributed as dist

_BLOCK = 2**19  # scores that stay in a processor's cache while they are worked on


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
    blocks = _blocks(L)
    for _ in range(iterations):
        mass = _logsumexp_over_batch(blocks, alone)
        for block in blocks:
            block -= mass  # every prototype gets the same mass
            block -= block.logsumexp(dim=1, keepdim=True)  # every image gets mass 1
    return L.exp_()


def _blocks(L: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Parts of `L`, rows after rows: a queue's scores are too many for a processor's cache."""
    rows = _BLOCK // L.shape[1] if L.device.type == "cpu" else len(L)
    return torch.split(L, max(1, rows))


def _logsumexp_over_batch(blocks: tuple[torch.Tensor, ...], alone: bool) -> torch.Tensor:
    """`[1, K]`: log of the sum over the rows of every process, or `alone` of this one."""
    parts = [block.logsumexp(dim=0, keepdim=True) for block in blocks]
    own = parts[0] if len(parts) == 1 else torch.cat(parts).logsumexp(dim=0, keepdim=True)
    if alone or not (dist.is_available() and dist.is_initialized()):
        return own
    peak = own.clone()
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    total = (own - peak).exp()
    dist.all_reduce(total)
    return peak + total.log()
