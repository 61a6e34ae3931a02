"""Codes: soft assignments of a batch to prototypes, balanced by Sinkhorn (paper, section 3.1).

Maximise  Tr(Qᵀ C Zᵀ) + ε H(Q)  over the Q whose rows sum to 1/K and columns to 1/B (equations 2-3):
Q* = diag(u) exp(scores / ε) diag(v), by Sinkhorn-Knopp. Computed in the log domain, where no ε
overflows and no row underflows to 0.
"""

import torch
import torch.distributed as dist

_BLOCK = 2**19  # scores that fit a CPU's cache


@torch.no_grad()
def sinkhorn(
    scores: torch.Tensor, *, epsilon: float = 0.05, iterations: int = 3, alone: bool = False
) -> torch.Tensor:
    """Codes `[B, K]` for `scores` `[B, K]`; each row sums to 1.

    Computed in float32 (float64 stays), over the batches of all processes where torch.distributed
    is initialised (`alone`: of this process only). Rows sum to 1 exactly; how equally prototypes
    are used depends on `iterations`. `epsilon` is in units of the scores (cosines).
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
    """Row blocks of `L`: the scores of a queue do not fit a CPU's cache."""
    rows = _BLOCK // L.shape[1] if L.device.type == "cpu" else len(L)
    return torch.split(L, max(1, rows))


def _logsumexp_over_batch(blocks: tuple[torch.Tensor, ...], alone: bool) -> torch.Tensor:
    """Log-sum-exp over the rows of all processes, or `alone` of this one; `[1, K]`."""
    parts = [block.logsumexp(dim=0, keepdim=True) for block in blocks]
    local = parts[0] if len(parts) == 1 else torch.cat(parts).logsumexp(dim=0, keepdim=True)
    if alone or not (dist.is_available() and dist.is_initialized()):
        return local
    maximum = local.clone()
    dist.all_reduce(maximum, op=dist.ReduceOp.MAX)
    total = (local - maximum).exp()
    dist.all_reduce(total)
    return maximum + total.log()
