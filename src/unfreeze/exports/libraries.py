"""Builds a run's network with torchvision or timm, and reports where they have no equal one."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from unfreeze.errors import UsageError
from unfreeze.exports.exported_model import ExportedModel

RESCALING = ("googlenet", "inception_v3")  # torchvision's versions rescale their input
USE_SAFETENSORS = "Use --to safetensors, which supports every network."


def torchvision_options(subject: ExportedModel) -> dict[str, Any]:
    """Keyword arguments for `torchvision.models.get_model`."""
    options: dict[str, Any] = {}
    if subject.card.classes:
        options["num_classes"] = len(subject.card.classes)
    if subject.name in RESCALING:
        rescaled = subject.library == "torchvision"
        options |= {"aux_logits": False, "init_weights": True, "transform_input": rescaled}
    return options


def from_torchvision(subject: ExportedModel) -> nn.Module:
    """The untrained torchvision network, with Identity for layers that the run lacks."""
    import torchvision

    options = torchvision_options(subject)
    network: nn.Module = torchvision.models.get_model(subject.name, weights=None, **options)
    for name in subject.identities:
        network.set_submodule(name, nn.Identity())
    return network


def from_timm(subject: ExportedModel) -> nn.Module:
    """The untrained timm network; `num_classes=0` for a backbone."""
    import timm

    network: Any = timm.create_model(subject.name, num_classes=len(subject.card.classes))
    return cast(nn.Module, network)


def check_library(
    library: str, subject: ExportedModel, build: Callable[[ExportedModel], nn.Module]
) -> None:
    """UsageError if the network from `build` has other names or shapes than the `subject`."""
    if subject.small_stem:
        raise UsageError(
            f"{subject.run} has the small stem (3x3, stride 1, no pooling); {library}'s "
            f"{subject.name} does not.",
            "Use --to safetensors: its README shows how to modify the network.",
        )
    if subject.ours or not library_has(library, subject.name):
        raise UsageError(f"{library} has no {subject.card.arch}.", USE_SAFETENSORS)
    if subject.card.arch == f"torchvision/{subject.name}" and library == "timm":
        _check_rescaling(subject.name)
    with torch.device("meta"):
        library_tensors = build(subject).state_dict()
    differing = differing_entries(library_tensors, subject.tensors())
    if differing:
        raise UsageError(
            f"{library}'s {subject.name} differs from {subject.card.arch} with the head of this "
            f"run in {len(differing):,} entries, first {differing[0]}.",
            USE_SAFETENSORS,
        )


def _check_rescaling(name: str) -> None:
    if name in RESCALING:
        raise UsageError(
            f"torchvision's {name} rescales its input; timm's does not.", USE_SAFETENSORS
        )


def library_has(library: str, name: str) -> bool:
    """Whether `library` (torchvision or timm) has a network of this name."""
    if library == "timm":
        import timm

        return bool(timm.is_model(name))
    import torchvision

    return name in torchvision.models.list_models(module=torchvision.models)


def differing_entries(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """Sorted names that only one side has or whose shapes differ."""
    library_shapes = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    run_shapes = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    return [
        name
        for name in sorted({*library_shapes, *run_shapes})
        if library_shapes.get(name) != run_shapes.get(name)
    ]
