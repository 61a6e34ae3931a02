"""LARC: SGD with a layer-wise adaptive learning rate, proportional to each tensor's norm.

You, Gitman and Ginsburg, "Large batch training of convolutional networks" (arXiv 1708.03888), in
the variant that SwAV uses: no clipping, weight decay inside the ratio.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer


class LARC(Optimizer):
    """SGD with momentum on gradients that are scaled by the norm of their parameter.

    The scale is `trust_coefficient * |p| / (|g| + weight_decay * |p| + eps)`, applied to gradient
    and weight decay. A tensor with zero norm or zero gradient gets a plain SGD step without weight
    decay, as in the published runs (a batch norm's bias at its first step, for example).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.6,
        *,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust_coefficient": trust_coefficient,
                "eps": eps,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; never waits for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        ratio, decay = _ratios(params, grads, group)
        tensors = _Tensors(params, grads, [self._momentum(p) for p in params])
        update = _one_by_one if params[0].is_cpu else _together
        update(tensors, ratio, decay, momentum=group["momentum"], lr=group["lr"])

    def _momentum(self, p: torch.Tensor) -> torch.Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer: torch.Tensor = state["momentum_buffer"]
        return buffer


class _Tensors(NamedTuple):
    params: list[torch.Tensor]
    grads: list[torch.Tensor]
    momenta: list[torch.Tensor]


def _together(
    tensors: _Tensors, ratios: torch.Tensor, decays: torch.Tensor, *, momentum: float, lr: float
) -> None:
    """Add (g + decay * p) * ratio to the momenta, subtract these from p: multi-tensor kernels."""
    params, grads, momenta = tensors
    scaled = torch._foreach_mul(params, decays.unbind())
    torch._foreach_add_(scaled, grads)
    torch._foreach_mul_(scaled, ratios.unbind())
    torch._foreach_mul_(momenta, momentum)
    torch._foreach_add_(momenta, scaled)
    torch._foreach_add_(params, momenta, alpha=-lr)


def _one_by_one(
    tensors: _Tensors, ratios: torch.Tensor, decays: torch.Tensor, *, momentum: float, lr: float
) -> None:
    """The same tensor by tensor, in place: cache-friendly, half the time on a CPU."""
    scales = zip(ratios.tolist(), decays.tolist(), strict=True)
    for p, g, m, (ratio, decay) in zip(*tensors, scales, strict=True):
        m.mul_(momentum).add_(g, alpha=ratio).add_(p, alpha=ratio * decay)
        p.add_(m, alpha=-lr)


def _ratios(
    params: list[torch.Tensor], grads: list[torch.Tensor], group: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(trust ratio, weight decay) of each tensor, on their device."""
    p_norm = torch.stack(torch._foreach_norm(params))
    g_norm = torch.stack(torch._foreach_norm(grads))
    decay = group["weight_decay"]
    ratio = group["trust_coefficient"] * p_norm / (g_norm + decay * p_norm + group["eps"])
    plain = (p_norm == 0) | (g_norm == 0)
    ratio = torch.where(plain, torch.ones_like(ratio), ratio)
    decays = torch.where(plain, torch.zeros_like(ratio), torch.full_like(ratio, decay))
    return ratio, decays
