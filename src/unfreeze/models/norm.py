"""Synchronised batch norm for several processes, on any device.

torch.nn.SyncBatchNorm supports CUDA only. This one combines the processes' means and variances and
uses torch's batch-norm kernels for everything else; on CUDA torch's own is used.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_Moments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class _BatchNormFunction(torch.autograd.Function):
    """Batch norm with the moments of the whole process group; saves only its input for backward."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, group: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, variance, count = _moments(x, weight, group)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.group = eps, group
        ctx.mark_non_differentiable(mean, variance, count)
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        # for constant moments: dy * weight / std, and this process's sums of dy * x^ and dy
        by_input, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([by_weight, by_bias])
        dist.all_reduce(sums, group=ctx.group)
        # the gradient through the moments, -(weight / std) * (x^ * mean(dy x^) + mean(dy)), has
        # the form of a batch norm
        scale, shift = -sums / count * weight * (variance + ctx.eps).rsqrt()
        by_input += F.batch_norm(x, mean, variance, scale, shift, training=False, eps=ctx.eps)
        return by_input, by_weight, by_bias, None, None


def _moments(x: torch.Tensor, weight: torch.Tensor, group: Any) -> _Moments:
    """Mean, variance and count, each `[C]`, of `x` `[B, C, ...]` over the process group."""
    unused = torch.zeros_like(weight)  # its dtype sets that of the result
    mean, variance = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
    count = torch.full_like(mean, x.numel() / x.shape[1])
    local = torch.stack([mean, variance, count]).double()
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, local, group=group)
    means, variances, counts = torch.stack(gathered, dim=1)
    total = counts.sum(0)
    total_mean = (counts * means).sum(0) / total
    # deviations from the common mean: no cancellation of large squares
    total_variance = (counts * (variances + (means - total_mean).square())).sum(0) / total
    return total_mean.to(mean), total_variance.to(mean), total.to(mean)


class SyncBatchNorm(_BatchNorm):
    """Batch norm of `[B, C]` or `[B, C, ...]` with statistics over a process group.

    Statistics have the dtype of its parameters. In evaluation mode it is ordinary batch norm.
    """

    def __init__(self, num_features: int, group: Any = None, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.group = group

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected [B, C, ...], got {list(input.shape)}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The input normalised per channel, times weight, plus bias; the same shape."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        weight: torch.Tensor = self.weight
        bias: torch.Tensor = self.bias
        if not self.affine:
            kind = torch.promote_types(input.dtype, torch.float32)
            weight = torch.ones(self.num_features, dtype=kind)
            bias = torch.zeros_like(weight)
        y, mean, variance, count = _BatchNormFunction.apply(
            input, weight, bias, self.eps, self.group
        )
        if self.track_running_stats:
            self._follow(mean, variance, count)
        normalised: torch.Tensor = y
        return normalised

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        """Update the running statistics, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        share = self.momentum or 0.0
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average of all batches
                share = 1.0 / float(self.num_batches_tracked)
        unbiased = variance * count / (count - 1)
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(unbiased.to(self.running_var), share)


class SyncBatchNormWithActivation(SyncBatchNorm):
    """timm's batch norm with an activation behind it (`BatchNormAct2d`), synchronised."""

    def __init__(self, old: Any, group: Any = None, **options: Any) -> None:
        super().__init__(old.num_features, group, **options)
        self.drop, self.act = old.drop, old.act

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The input normalised, then dropout (if any) and the activation."""
        activated: torch.Tensor = self.act(self.drop(super().forward(input)))
        return activated


def convert_sync_batchnorm(model: nn.Module, group: Any = None) -> nn.Module:
    """The model with every batch norm synchronised over `group` (None: all processes).

    Parameters and buffers stay the same objects with the same names. On CUDA this uses
    torch.nn.SyncBatchNorm, by timm's function, which keeps the activations of timm's batch norms.
    """
    if any(p.is_cuda for p in model.parameters()):
        import timm.layers

        converted: nn.Module = timm.layers.convert_sync_batchnorm(model, group)  # type: ignore[no-untyped-call,attr-defined]
        return converted
    if isinstance(model, _BatchNorm) and not isinstance(model, SyncBatchNorm):
        return _convert(model, group)
    for name, child in model.named_children():
        setattr(model, name, convert_sync_batchnorm(child, group))
    return model


def _convert(old: _BatchNorm, group: Any) -> SyncBatchNorm:
    options: dict[str, Any] = {
        "eps": old.eps,
        "momentum": old.momentum,
        "affine": old.affine,
        "track_running_stats": old.track_running_stats,
    }
    if isinstance(getattr(old, "act", None), nn.Module):
        new: SyncBatchNorm = SyncBatchNormWithActivation(old, group, **options)
    else:
        new = SyncBatchNorm(old.num_features, group, **options)
    for name, parameter in old._parameters.items():
        new._parameters[name] = parameter
    for name, buffer in old._buffers.items():
        new._buffers[name] = buffer
    new.train(old.training)
    return new


def batchnorm_process_group(size: int, world: int, rank: int) -> Any:
    """The group of `size` consecutive ranks with this process; None for all processes.

    Collective: every process makes every group. `world` is a multiple of `size`.
    """
    if not size or size >= world:
        return None
    own_group = None
    for start in range(0, world, size):
        group = dist.new_group(list(range(start, start + size)))
        if start <= rank < start + size:
            own_group = group
    return own_group


@contextlib.contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block batch norms use batch statistics and do not update running statistics."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
