"""Optimizers by name, and their parameter groups."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from unfreeze.errors import UsageError
from unfreeze.optim.larc import LARC


def decay_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups: no weight decay for biases and normalisation layers (one dimension).

    Returns two groups, or two per distinct scale: `scales` maps names to a multiple of the learning
    rate (default 1), stored as `lr_scale` for `set_lr`.
    """
    parameters, lr_scales = list(named), scales or {}
    groups: list[dict[str, Any]] = []
    for lr_scale in sorted({lr_scales.get(name, 1.0) for name, _ in parameters}, reverse=True) or [
        1.0
    ]:
        members = [p for name, p in parameters if lr_scales.get(name, 1.0) == lr_scale]
        extra = {"lr_scale": lr_scale} if lr_scale != 1 else {}
        decayed = {"params": [p for p in members if p.ndim > 1], "weight_decay": weight_decay}
        undecayed = {"params": [p for p in members if p.ndim <= 1], "weight_decay": 0.0}
        groups += [decayed | extra, undecayed | extra]
    return groups


def make_optimizer(
    name: str,
    groups: Iterable[Any],
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Create `sgd`, `adamw` or `larc` (alias `lars`) over parameters or parameter groups."""
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name == "adamw":
        groups = list(groups)
        # on a CPU torch's default takes four times as long; on a GPU it is fine
        fused = True if _on_cpu(groups) else None
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=fused)
    if name in ("larc", "lars"):
        return LARC(groups, lr, momentum=momentum, weight_decay=weight_decay)
    raise UsageError(f"Unknown optimizer {name!r}.", "Use sgd, adamw or larc.")


def _on_cpu(groups: Sequence[Any]) -> bool:
    """Whether all parameters (or those of all groups) are on the CPU."""
    groups = [group["params"] if isinstance(group, dict) else [group] for group in groups]
    return all(p.device.type == "cpu" for group in groups for p in group)


def optimizer_for_network(
    name: str,
    network: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    scales: Mapping[str, float] | None = None,
) -> Optimizer:
    """Optimizer over all parameters; with AdamW, biases and normalisation have no weight decay.

    `scales`: names of parameters -> multiple of the learning rate (default 1).
    """
    groups: Any = network.parameters()
    if name == "adamw" or scales:
        groups = decay_groups(network.named_parameters(), weight_decay, scales)
    if name != "adamw" and scales:
        # as published, SGD and LARC decay all parameters
        groups = [{**group, "weight_decay": weight_decay} for group in groups if group["params"]]
    return make_optimizer(name, groups, lr=lr, weight_decay=weight_decay)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's `lr_scale` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def warmup_cosine(
    step: int, *, total: int, warmup: int, base: float, final: float = 0.0, start: float = 0.0
) -> float:
    """Linear warm-up from `start` to `base` over `warmup` steps, then cosine annealing to `final`.

    As in SwAV's published runs, both the last warm-up step and the first cosine step use `base`.
    """
    if step < warmup:
        return start + (base - start) * step / max(1, warmup - 1)
    t = (step - warmup) / max(1, total - warmup)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * t))


def schedule_lr(name: str, step: int, *, total: int, warmup: int, base: float) -> float:
    """Learning rate of `cosine` (to 0), `constant`, or `step` (/ 10 at 1/2, / 100 at 3/4)."""
    if name == "cosine" or step < warmup:
        return warmup_cosine(step, total=total, warmup=warmup, base=base)
    if name == "constant":
        return base
    done = step / max(1, total)
    return base * (0.01 if done >= 0.75 else 0.1 if done >= 0.5 else 1.0)
