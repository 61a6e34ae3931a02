"""Batch norm over the batch of several processes, on any device.

torch's SyncBatchNorm refuses the CPU. This one adds up (sum, sum of squares, count) over the
processes with autograd, and is used wherever torch's is not.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Total(torch.autograd.Function):
    """The sum over a group of processes; so is the gradient."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        total = part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm of `[B, C]` or `[B, C, ...]` with the statistics of a whole group of processes.

    Statistics are computed in float32 at least. In evaluation it is batch norm as ever.
    """

    def __init__(self, num_features: int, group: Any = None, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.group = group

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected [B, C, ...], got {list(input.shape)}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The input with each channel at mean 0 and variance 1, times weight, plus bias."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        around = [1, -1] + [1] * (x.ndim - 2)
        count, mean, variance = self._statistics(x)
        if self.track_running_stats:
            self._follow(mean, variance, count)
        y = (x - mean.view(around)) * (variance + self.eps).rsqrt().view(around)
        if self.affine:
            y = y * self.weight.view(around) + self.bias.view(around)
        return y.to(input.dtype)

    def _statistics(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Count, mean `[C]` and variance `[C]` over the group."""
        dims = [d for d in range(x.ndim) if d != 1]
        count = x.new_tensor([x.numel() / x.shape[1]])
        total = _Total.apply(torch.cat([x.sum(dims), x.square().sum(dims), count]), self.group)
        sums, squares, count = total.split([self.num_features, self.num_features, 1])
        mean = sums / count
        return count, mean, (squares / count - mean.square()).clamp_min(0)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        """Move the running statistics; theirs is the unbiased variance."""
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


def synchronised(model: nn.Module, group: Any = None) -> nn.Module:
    """The model with every batch norm over the processes of `group` (None: all of them).

    Parameters and buffers stay the same objects under the same names. On CUDA torch's own
    SyncBatchNorm is taken.
    """
    if any(p.is_cuda for p in model.parameters()):
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model, group)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(model, _BatchNorm) and not isinstance(model, SynchronisedBatchNorm):
        return _converted(model, group)
    for name, child in model.named_children():
        setattr(model, name, synchronised(child, group))
    return model


def _converted(old: _BatchNorm, group: Any) -> SynchronisedBatchNorm:
    new = SynchronisedBatchNorm(
        old.num_features,
        group,
        eps=old.eps,
        momentum=old.momentum,
        affine=old.affine,
        track_running_stats=old.track_running_stats,
    )
    for name, parameter in old._parameters.items():
        new._parameters[name] = parameter
    for name, buffer in old._buffers.items():
        new._buffers[name] = buffer
    new.train(old.training)
    return new


def groups_of(size: int, world: int, rank: int) -> Any:
    """The process group of `size` neighbours this process is in; None for all processes.

    Collective: every process makes every group. `world` is a multiple of `size`.
    """
    if not size or size >= world:
        return None
    mine = None
    for start in range(0, world, size):
        group = dist.new_group(list(range(start, start + size)))
        if start <= rank < start + size:
            mine = group
    return mine


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block batch norms use each batch's statistics and remember none of them."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
