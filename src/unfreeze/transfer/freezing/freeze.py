"""Layer freezing: frozen parameters stay bit-identical, frozen modules stay in eval mode.

Frozen parameters have no gradients and the optimizer does not change them. Frozen modules keep
their batch-norm statistics and disable dropout and stochastic depth, even after `model.train()`.
"""

import dataclasses
import hashlib
import re
import types
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from unfreeze.errors import UsageError
from unfreeze.models.stages import stages


@dataclasses.dataclass(frozen=True)
class FreezeSchedule:
    """Frozen parameters from each epoch on: ((0, names), (5, fewer names), ...)."""

    steps: tuple[tuple[int, frozenset[str]], ...]

    def at(self, epoch: int) -> frozenset[str]:
        """Names of the parameters frozen during `epoch`."""
        return [names for start, names in self.steps if start <= epoch][-1]

    @property
    def always(self) -> frozenset[str]:
        """Names frozen in every epoch; all other parameters are in the optimizer from step 0."""
        return frozenset.intersection(*(names for _, names in self.steps))


def constant_schedule(names: Collection[str]) -> FreezeSchedule:
    """A schedule that freezes the same names in all epochs."""
    return FreezeSchedule(((0, frozenset(names)),))


def select_frozen(model: nn.Module, spec: str, *, head: str | Collection[str]) -> set[str]:
    """Names of the parameters that `--freeze` SPEC freezes.

    `none`; `all`: everything but `head` (names of modules or parameters); `norms`: the batch norms,
    with their statistics; `stage:N`: the stem and the first N stages; `regex:PATTERN`: every name
    that matches (`re.search`). Raises UsageError with the valid choices.
    """
    heads = (head,) if isinstance(head, str) else tuple(head)
    kind, _, rest = spec.partition(":")
    if spec == "none":
        return set()
    if spec == "all":
        names = [name for name, _ in model.named_parameters()]
        return {name for name in names if not any(_inside(name, h) for h in heads)}
    if spec == "norms":
        return _batch_norms(model)
    if kind == "stage":
        return _in_stages(model, rest)
    if kind == "regex":
        return _matching(model, rest, heads)
    raise UsageError(
        f"Invalid value for --freeze: {spec!r}.", "Use none, all, norms, stage:N or regex:PATTERN."
    )


def apply_freeze(model: nn.Module, frozen: Collection[str]) -> list[str]:
    """Freeze exactly these parameters and unfreeze all others; returns the pinned modules' names.

    A module is pinned to eval mode if all its parameters are frozen, or if it has none and
    is registered between frozen modules. Can be called again at any epoch.
    """
    for module in model.modules():
        module.__dict__.pop("train", None)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
        if name in frozen:
            parameter.grad = (
                None  # with a zero gradient, momentum and weight decay would still change it
            )
    pinned = modules_to_pin(model, frozen)
    for name in pinned:
        module = model.get_submodule(name)
        module.__dict__["train"] = types.MethodType(_stay_in_eval, module)
        module.eval()
    return pinned


def modules_to_pin(model: nn.Module, frozen: Collection[str]) -> list[str]:
    """Names of the modules `apply_freeze` pins, nested ones too, in order of registration."""
    layers = [n for n, m in model.named_modules() if any(True for _ in m.parameters(False))]
    all_frozen = {n: _all_frozen(model.get_submodule(n), n, frozen) for n in layers}
    names, previous = [], True
    order = [name for name, _ in model.named_modules()]
    for index, name in enumerate(order):
        module = model.get_submodule(name)
        if any(True for _ in module.parameters()):
            pin = _all_frozen(module, name, frozen)
            previous = all_frozen.get(name, previous)
        else:
            following = next((all_frozen[n] for n in order[index + 1 :] if n in all_frozen), False)
            # buffers are statistics of the layer before; dropout regularises the layer after
            pin = previous and (following or any(True for _ in module.buffers()))
        if pin and frozen:
            names.append(name)
    return names


def frozen_entries(model: nn.Module, frozen: Collection[str]) -> set[str]:
    """State dict entries that must not change: frozen parameters, entries of pinned modules."""
    entries = set(model.state_dict(keep_vars=True))
    names = set(frozen) & entries
    for module in modules_to_pin(model, frozen):
        names |= {name for name in entries if _inside(name, module)}
    return names


def hash_tensors(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, str]:
    """Name -> SHA-256 of dtype, shape and bytes; 'absent' for a missing name."""
    return {name: _hash(tensors[name]) if name in tensors else "absent" for name in sorted(names)}


def _hash(tensor: torch.Tensor) -> str:
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """`train` of a pinned module: sets eval mode, also for its submodules."""
    return nn.Module.train(module, False)


def _all_frozen(module: nn.Module, prefix: str, frozen: Collection[str]) -> bool:
    dot = f"{prefix}." if prefix else ""
    return all(dot + name in frozen for name, _ in module.named_parameters())


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _batch_norms(model: nn.Module) -> set[str]:
    names = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for part, _ in module.named_parameters()
    }
    if not names:
        raise UsageError(
            "--freeze norms: this network has no batch norm.", "Leave out --freeze norms."
        )
    return names


def _in_stages(model: nn.Module, count: str) -> set[str]:
    all_stages = stages(model)
    listed = ", ".join(f"{index} {stage.name}" for index, stage in enumerate(all_stages))
    if not count.isdecimal() or int(count) >= len(all_stages):
        raise UsageError(
            f"--freeze stage:{count}: this network has stages 0 to {len(all_stages) - 1}.",
            f"Use one of them: {listed}.",
        )
    modules = [name for stage in all_stages[: int(count) + 1] for name in stage.modules]
    names = [name for name, _ in model.named_parameters()]
    return {name for name in names if any(_inside(name, module) for module in modules)}


def _matching(model: nn.Module, pattern: str, heads: tuple[str, ...]) -> set[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"--freeze regex:{pattern} is not a valid regular expression: {error}."
        ) from error
    names = [name for name, _ in model.named_parameters()]
    matched = {name for name in names if compiled.search(name)}
    parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
    if not matched:
        raise UsageError(
            f"--freeze regex:{pattern} matches no parameter.",
            f"Parameter names begin with: {parts}; `unfreeze summary` lists them all.",
        )
    in_head = [name for name in sorted(matched) if any(_inside(name, head) for head in heads)]
    if in_head:
        raise UsageError(
            f"--freeze regex:{pattern} matches {in_head[0]} of the new head, which must train.",
            "Narrow the pattern.",
        )
    return matched
