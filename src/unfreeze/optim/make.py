"""Optimizers by name, and which parameters share a group."""

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
    """Two groups: matrices and kernels decay; biases and normalisation (one dimension) do not.

    With `scales` (name -> share of the learning rate, 1 where absent) two for each share, which
    `set_lr` keeps.
    """
    parameters, shares = list(named), scales or {}
    groups: list[dict[str, Any]] = []
    for share in sorted({shares.get(name, 1.0) for name, _ in parameters}, reverse=True) or [1.0]:
        mine = [p for name, p in parameters if shares.get(name, 1.0) == share]
        extra = {"lr_scale": share} if share != 1 else {}
        decays = {"params": [p for p in mine if p.ndim > 1], "weight_decay": weight_decay}
        still = {"params": [p for p in mine if p.ndim <= 1], "weight_decay": 0.0}
        groups += [decays | extra, still | extra]
    return groups


def make_optimizer(
    name: str,
    groups: Iterable[Any],
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Optimizer:
    """`sgd`, `adamw` or `larc` (also called `lars`) over parameters or groups of them."""
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name == "adamw":
        groups = list(groups)
        # on a CPU torch's own choice takes four times as long; on a GPU its choice is good
        fused = True if _on_cpu(groups) else None
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=fused)
    if name in ("larc", "lars"):
        return LARC(groups, lr, momentum=momentum, weight_decay=weight_decay)
    raise UsageError(f"There is no optimizer {name!r}.", "Choose sgd, adamw or larc.")


def _on_cpu(groups: Sequence[Any]) -> bool:
    """Of parameters, or groups of them."""
    groups = [group["params"] if isinstance(group, dict) else [group] for group in groups]
    return all(p.device.type == "cpu" for group in groups for p in group)


def for_network(name: str, network: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    """The optimizer of all parameters: AdamW's decay is meant for matrices, the others' for all."""
    groups: Any = network.parameters()
    if name == "adamw":
        groups = decay_groups(network.named_parameters(), weight_decay)
    return make_optimizer(name, groups, lr=lr, weight_decay=weight_decay)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """The same learning rate for every group, times the group's own `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
