"""Freezing that holds: what stands still, kept in eval mode, and proven by hashes.

A frozen part has no gradients, is not moved by the optimizer, and keeps its batch-norm statistics,
dropout and stochastic depth in inference mode whoever calls `model.train()`.
"""

import dataclasses
import hashlib
import re
import types
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from unfreeze.backbones.stages import stages
from unfreeze.errors import UsageError


@dataclasses.dataclass(frozen=True)
class FreezeSchedule:
    """Which parameters stand still from which epoch on: ((0, names), (5, fewer names), ...)."""

    steps: tuple[tuple[int, frozenset[str]], ...]

    def at(self, epoch: int) -> frozenset[str]:
        """The names frozen during `epoch`."""
        return [names for start, names in self.steps if start <= epoch][-1]

    @property
    def always(self) -> frozenset[str]:
        """The names no epoch ever trains; every other parameter is in the optimizer from step 0."""
        return frozenset.intersection(*(names for _, names in self.steps))


def constant(names: Collection[str]) -> FreezeSchedule:
    """The same names frozen from the first epoch to the last."""
    return FreezeSchedule(((0, frozenset(names)),))


def select_frozen(model: nn.Module, spec: str, *, head: str | Collection[str]) -> set[str]:
    """Names of the parameters that `--freeze` SPEC makes stand still.

    `none`; `all`: everything but `head` (names of modules or parameters); `norms`: the batch norms,
    with their statistics; `stage:N`: the stem and the first N stages; `regex:PATTERN`: every name
    in which the pattern is found. UsageError says what there is.
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
        f"--freeze does not know {spec!r}.", "Use none, all, norms, stage:N or regex:PATTERN."
    )


def apply_freeze(model: nn.Module, frozen: Collection[str]) -> list[str]:
    """Freeze exactly these parameters (others thaw); returns the names of the pinned modules.

    A module is pinned to eval mode when all its parameters are frozen, or when it has none and
    stands between frozen ones (in the order of registration). Safe to call again at any epoch.
    """
    for module in model.modules():
        module.__dict__.pop("train", None)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
        if name in frozen:
            parameter.grad = None  # a stale zero would let momentum and weight decay move it
    pinned = to_pin(model, frozen)
    for name in pinned:
        module = model.get_submodule(name)
        module.__dict__["train"] = types.MethodType(_stay_in_eval, module)
        module.eval()
    return pinned


def to_pin(model: nn.Module, frozen: Collection[str]) -> list[str]:
    """Names of the modules `apply_freeze` pins, in the order of registration, inner ones too."""
    holders = [n for n, m in model.named_modules() if any(True for _ in m.parameters(False))]
    still = {n: _all_frozen(model.get_submodule(n), n, frozen) for n in holders}
    names, previous = [], True
    order = [name for name, _ in model.named_modules()]
    for place, name in enumerate(order):
        module = model.get_submodule(name)
        if any(True for _ in module.parameters()):
            pin = _all_frozen(module, name, frozen)
            previous = still.get(name, previous)
        else:
            following = next((still[n] for n in order[place + 1 :] if n in still), False)
            # statistics belong to what came before; dropout regularises what comes after
            pin = previous and (following or any(True for _ in module.buffers()))
        if pin and frozen:
            names.append(name)
    return names


def standing(model: nn.Module, frozen: Collection[str]) -> set[str]:
    """Entries of the state dict that must not change: frozen parameters, buffers pinned modules."""
    entries = set(model.state_dict(keep_vars=True))
    names = set(frozen) & entries
    for module in to_pin(model, frozen):
        names |= {name for name in entries if _inside(name, module)}
    return names


def fingerprint(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, str]:
    """Name -> SHA-256 of type, shape and bytes; a name that is absent hashes to 'absent'."""
    return {name: _hash(tensors[name]) if name in tensors else "absent" for name in sorted(names)}


def _hash(tensor: torch.Tensor) -> str:
    whole = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{whole.dtype} {tuple(whole.shape)} ".encode())
    digest.update(whole.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """What `train` does on a pinned module: nothing but eval mode, for it and all inside."""
    return nn.Module.train(module, False)


def _all_frozen(module: nn.Module, prefix: str, frozen: Collection[str]) -> bool:
    dot = f"{prefix}." if prefix else ""
    return all(dot + name in frozen for name, _ in module.named_parameters())


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _batch_norms(model: nn.Module) -> set[str]:
    found = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for part, _ in module.named_parameters()
    }
    if not found:
        raise UsageError("--freeze norms: this network has no batch norm.", "Leave it out.")
    return found


def _in_stages(model: nn.Module, count: str) -> set[str]:
    found = stages(model)
    listed = ", ".join(f"{place} {stage.name}" for place, stage in enumerate(found))
    if not count.isdecimal() or int(count) >= len(found):
        raise UsageError(
            f"--freeze stage:{count}: this network has stages 0 to {len(found) - 1}.",
            f"They are: {listed}.",
        )
    modules = [name for stage in found[: int(count) + 1] for name in stage.modules]
    names = [name for name, _ in model.named_parameters()]
    return {name for name in names if any(_inside(name, module) for module in modules)}


def _matching(model: nn.Module, pattern: str, heads: tuple[str, ...]) -> set[str]:
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--freeze regex:{pattern} is no regular expression: {error}.") from error
    names = [name for name, _ in model.named_parameters()]
    matched = {name for name in names if found.search(name)}
    parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
    if not matched:
        raise UsageError(
            f"--freeze regex:{pattern} matches no parameter.",
            f"Names begin with: {parts}; `unfreeze summary` lists them all.",
        )
    touched = [name for name in sorted(matched) if any(_inside(name, head) for head in heads)]
    if touched:
        raise UsageError(
            f"--freeze regex:{pattern} matches {touched[0]} of the new head, which must train.",
            "Narrow the pattern.",
        )
    return matched
