"""The same network as torchvision or timm builds it, and why they sometimes have none."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from unfreeze.errors import UsageError
from unfreeze.exports.subject import Subject

RESCALING = ("googlenet", "inception_v3")  # as torchvision builds them, they rescale their input
REMAINS = "Use --to safetensors, which supports every network."


def torchvision_options(subject: Subject) -> dict[str, Any]:
    """What `torchvision.models.get_model` must be told beside the name."""
    options: dict[str, Any] = {}
    if subject.card.classes:
        options["num_classes"] = len(subject.card.classes)
    if subject.name in RESCALING:
        rescaled = subject.library == "torchvision"
        options |= {"aux_logits": False, "init_weights": True, "transform_input": rescaled}
    return options


def from_torchvision(subject: Subject) -> nn.Module:
    """The untrained network of that name, without the layers that ours has not."""
    import torchvision

    options = torchvision_options(subject)
    network: nn.Module = torchvision.models.get_model(subject.name, weights=None, **options)
    for place in subject.identities:
        network.set_submodule(place, nn.Identity())
    return network


def from_timm(subject: Subject) -> nn.Module:
    """The untrained network of that name; `num_classes=0` for a backbone."""
    import timm

    network: Any = timm.create_model(subject.name, num_classes=len(subject.card.classes))
    return cast(nn.Module, network)


def check_library(library: str, subject: Subject, build: Callable[[Subject], nn.Module]) -> None:
    """UsageError where `build` does not make a network with the names and shapes of `subject`."""
    if subject.small_stem:
        raise UsageError(
            f"{subject.run} has the small stem (3x3, stride 1, no pooling); {library}'s "
            f"{subject.name} has not.",
            "Use --to safetensors: its README has the lines that change the network into this one.",
        )
    if subject.ours or not has(library, subject.name):
        raise UsageError(f"{library} has no {subject.card.arch}.", REMAINS)
    if subject.card.arch == f"torchvision/{subject.name}" and library == "timm":
        _check_rescaling(subject.name)
    with torch.device("meta"):
        theirs = build(subject).state_dict()
    odd = unlike(theirs, subject.tensors())
    if odd:
        raise UsageError(
            f"{library}'s {subject.name} is another network than {subject.card.arch} with the head "
            f"of this run: {odd[0]} has no counterpart, and {len(odd) - 1:,} others.",
            REMAINS,
        )


def _check_rescaling(name: str) -> None:
    if name in RESCALING:
        raise UsageError(f"torchvision's {name} rescales its input; timm's does not.", REMAINS)


def has(library: str, name: str) -> bool:
    """Whether a library builds a network of this name."""
    if library == "timm":
        import timm

        return bool(timm.is_model(name))
    import torchvision

    return name in torchvision.models.list_models(module=torchvision.models)


def unlike(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """Names that only one side has, or whose shapes differ."""
    left = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    right = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    return [name for name in sorted({*left, *right}) if left.get(name) != right.get(name)]
