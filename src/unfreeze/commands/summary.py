"""`summary`: a network as a table of layers, with parameters, trainable state and stages."""

import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.checkpoints.read import read_checkpoint
from unfreeze.config.commands import SummarySettings
from unfreeze.config.layering import load_settings
from unfreeze.errors import UsageError
from unfreeze.models.build import build as build_network
from unfreeze.models.head import head_layers, is_headless, remove_head, replace_head
from unfreeze.models.identify_file import KnownArchitecture, arch_of_weights
from unfreeze.models.segmentation import SEGMENTATION_HEADS, is_segmentation_arch
from unfreeze.models.shape_trace import ForwardTrace, trace_forward
from unfreeze.models.stages import Stage, stages
from unfreeze.reports.results_models import summary_display
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.console import Console
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.transfer.freezing.schedule import freeze_schedule

_MEBIBYTE = 2**20


@dataclass(frozen=True, repr=False)
class Summary(Displayed):
    """The layers of a network in forward order.

    `layers`: `name, type, output` (shape without the batch), `parameters`, `trainable` (in any
    epoch), `stage` (its number; None for the head). `stages`: `number, name, parameters`, as
    counted by `--freeze stage:N`. `megabytes`: memory of the parameters (2**20 bytes).
    """

    arch: str
    layers: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    parameters_total: int
    parameters_trainable: int
    parameters_frozen: int
    megabytes: float

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return summary_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer."""
        return self.layers


@python_call(SummarySettings)
def summary(arch: str, *, progress: bool | None = None, **settings: Any) -> Summary:
    """The layers of an architecture, of a run's model, or of a checkpoint's architecture.

    Shapes are computed on the meta device, without arithmetic.
    """
    return run_summary(
        load_settings(SummarySettings, {"arch": arch, **settings}), python_console(progress)
    )


@isolated()
def run_summary(settings: SummarySettings, console: Console) -> Summary:
    """The same from a settings object."""
    arch, model, frozen = _network(settings)
    heads = () if is_headless(model) else head_layers(model)
    stage_list = stages(model)
    traced = trace_forward(model, _height_and_width(settings.input))
    layers: list[dict[str, Any]] = []
    for row in _rows(model, traced):
        number = (
            layers[-1]["stage"] if layers else 0
        )  # a layer without parameters is in the stage of the one before
        layers.append(_layer(row, frozen, _stage_of(row.name, stage_list, heads, number)))
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    frozen_count = sum(counts[name] for name in frozen)
    return Summary(
        arch=arch,
        layers=layers,
        stages=[_stage(number, stage, counts) for number, stage in enumerate(stage_list)],
        parameters_total=sum(counts.values()),
        parameters_trainable=sum(counts.values()) - frozen_count,
        parameters_frozen=frozen_count,
        megabytes=sum(p.numel() * p.element_size() for p in model.parameters()) / _MEBIBYTE,
    )


def _network(settings: SummarySettings) -> tuple[str, nn.Module, frozenset[str]]:
    """(name of the architecture, the network with its head, names of the frozen parameters)."""
    arch, stem, classes = settings.arch, settings.stem, settings.classes
    bare, kind, freeze, unfreeze_at = False, "replace", settings.freeze or "none", None
    card, known = _card_or_arch(arch)
    if known is not None:
        arch, stem = known.arch, known.stem
    if card is not None:
        arch, stem = card.arch, card.stem
        classes = classes or card.outputs or len(card.classes) or None
        bare = card.kind == "backbone" and classes is None
        if card.kind != "backbone":
            kind = "replace" if card.head == "none" else card.head
        if card.kind != "backbone" and not settings.freeze:
            freeze = card.provenance.get("freeze", "none")
            unfreeze_at = card.provenance.get("unfreeze_at")
    if is_segmentation_arch(arch):
        model = build_network(arch, classes=classes)
        head: Collection[str] = SEGMENTATION_HEADS
        schedule = freeze_schedule(model, freeze, unfreeze_at, head=head, epochs=sys.maxsize)
        return arch, model, schedule.always
    model = build_network(arch, stem=stem)
    head = ()
    if classes is not None:
        head = replace_head(model, classes, kind=kind)
    elif bare:
        remove_head(model)  # the run's model has no head
    else:
        head = head_layers(model)
    schedule = freeze_schedule(model, freeze, unfreeze_at, head=head, epochs=sys.maxsize)
    return arch, model, schedule.always


def _card_or_arch(arch: str) -> tuple[ModelCard | None, KnownArchitecture | None]:
    """(the model card of an unfreeze file, the architecture of any other file)."""
    if not Path(arch).exists():
        return None, None
    card = read_checkpoint(arch).card
    return card, None if card else arch_of_weights(arch)


def _height_and_width(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"3x([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UsageError(f"--input {text!r} is not an input size.", "Use --input 3xHEIGHTxWIDTH.")
    return int(match.group(1)), int(match.group(2))


@dataclass(frozen=True)
class _Row:
    name: str
    type: str
    output: list[int]
    own: dict[str, int]  # parameters by full name


def _rows(model: nn.Module, traced: ForwardTrace) -> Iterator[_Row]:
    """Leaf modules, and parameters of modules with children (such as a class token)."""
    named = sorted(model.named_modules(), key=lambda item: _order(item[0], traced))
    for name, module in named:
        dot = f"{name}." if name else ""
        sizes = {dot + key: p.numel() for key, p in module.named_parameters(recurse=False)}
        if any(True for _ in module.children()):
            for key, parameter in module.named_parameters(recurse=False):
                size = {dot + key: parameter.numel()}
                yield _Row(dot + key, "Parameter", list(parameter.shape), size)
        elif sizes or name in traced.shapes:
            yield _Row(name, type(module).__name__, list(traced.shapes.get(name, ())[1:]), sizes)


def _order(name: str, traced: ForwardTrace) -> int:
    """Forward order of a module; that of its parent if it did not run itself."""
    while name and name not in traced.order:
        name = name.rpartition(".")[0]
    return traced.order.get(name, -1)


def _stage_of(
    name: str, stage_list: list[Stage], heads: tuple[str, ...], previous: int | None
) -> int | None:
    if any(name == head or name.startswith(f"{head}.") for head in heads):
        return None
    return next((number for number, stage in enumerate(stage_list) if stage.owns(name)), previous)


def _layer(row: _Row, frozen: frozenset[str], number: int | None) -> dict[str, Any]:
    return {
        "name": row.name,
        "type": row.type,
        "output": row.output,
        "parameters": sum(row.own.values()),
        "trainable": any(name not in frozen for name in row.own),
        "stage": number,
    }


def _stage(number: int, stage: Stage, counts: dict[str, int]) -> dict[str, Any]:
    count_of = sum(count for name, count in counts.items() if stage.owns(name))
    return {"number": number, "name": stage.name, "parameters": count_of}
