"""`inspect`: the contents of a checkpoint of any origin, its architecture, and how to use it."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unfreeze.checkpoints.adapters import LoadableTensors, loadable_tensors
from unfreeze.checkpoints.model_file import CARD, TENSORS, licence_text, model_folder
from unfreeze.checkpoints.read import CheckpointContents, UnsafeCheckpoint, read_checkpoint
from unfreeze.checkpoints.tensor_values import why_unusable
from unfreeze.config.commands import InspectSettings
from unfreeze.config.layering import build
from unfreeze.errors import WeightsError
from unfreeze.models.build import build_on_meta
from unfreeze.models.identify import LIKELY, ArchitectureMatch
from unfreeze.models.identify_file import identify_contents
from unfreeze.models.load_weights import MIN_MATCHED_SHARE
from unfreeze.models.weight_sources import terms_of_file
from unfreeze.runtime.console import Console, QuietConsole
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.text_layout import TextTable
from unfreeze.swav.head_weights import (
    count_near_identical,
    head_weights_of_run,
    prototypes_in,
    without_weight_norm,
)


@dataclass(frozen=True, repr=False)
class Inspection(Displayed):
    """The contents of a checkpoint.

    `format`: "safetensors", "torch zip", "torch legacy", "pickle" or "unfreeze model".
    `container`: the keys that lead to the state dict in the file. `tensors`: its entries (`name,
    shape, dtype`); `keys`: their number. `prefix`: of the keys, before the names of the
    architecture. `arch`, `stem`: the architecture, None if unknown; `matched`: fraction of its
    backbone's parameters in the file, 0..1; `head`: its classifier layers, if their size is the
    standard one. `how`: how keys are mapped. `rivals`: other architectures that fit as well.
    `problem`: why it cannot be loaded, or "". `verified`: the checksum that was compared, "" if
    the format has none. `missing`: parameters of the backbone that the file lacks. `unused`:
    entries that do not belong to the architecture, counted by module. `prototypes`: `name, count,
    width, near_identical` (number with a cosine above 0.999 to another one) of each prototype
    matrix. `beside`: other sets of tensors in the file. `about`: metadata in the file. `closest`: a
    sentence if `arch` is None. `licence`: of the weights, or "". `commands`: next commands.
    `unsafe`: names in a pickle that could run code; all else is then empty.
    """

    file: str
    format: str
    keys: int = 0
    tensors: list[dict[str, Any]] = field(default_factory=list)
    prefix: str = ""
    arch: str | None = None
    stem: str | None = None
    matched: float = 0.0
    head: list[str] = field(default_factory=list)
    how: list[str] = field(default_factory=list)
    rivals: list[str] = field(default_factory=list)
    problem: str = ""
    verified: str = ""
    missing: list[str] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)
    prototypes: list[dict[str, Any]] = field(default_factory=list)
    container: str = ""
    beside: dict[str, int] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    closest: str = ""
    licence: str = ""
    commands: list[str] = field(default_factory=list)
    unsafe: list[str] = field(default_factory=list)

    @property
    def refused(self) -> WeightsError | None:
        """The error for an unsafe file; None if the file is safe."""
        if not self.unsafe:
            return None
        names = ", ".join(self.unsafe[:6])
        return WeightsError(
            f"{self.file} could run code on loading ({names}); it was not loaded.",
            "If you trust it, load it with the library that wrote it and save only its "
            "state_dict().",
        )

    def display(self) -> Display:
        """A few lines, a table of the modules, and the next commands."""
        return _display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per tensor: `name, shape, dtype`."""
        return self.tensors


def inspect(file: str | Path) -> Inspection:
    """The contents of `file`: a checkpoint of any origin, a run folder or its `model/` folder.

    A pickle that could run code is not loaded: `unsafe` lists what it would call. WeightsError for
    a truncated file, and for one that is not a checkpoint.
    """
    return run_inspect(build(InspectSettings, {"file": str(file)}), QuietConsole())


@isolated()
def run_inspect(settings: InspectSettings, console: Console) -> Inspection:
    """The same from a settings object."""
    path = Path(settings.file)
    last = path / "checkpoints" / "last.ckpt"
    if path.is_dir() and model_folder(path) is None and last.exists():
        path = last  # an unfinished run
    if path.name in (CARD, TENSORS) and model_folder(path) is not None:
        path = path.parent  # both files belong to one model
    try:
        contents = read_checkpoint(path)
    except UnsafeCheckpoint as refusal:
        names = refusal.names or ["not from torch.save"]
        return Inspection(str(path), refusal.format, unsafe=names)
    return _inspection(path, contents, identify_contents(contents, path))


def _display(result: Inspection) -> Display:
    """The lines, the table of modules and the next commands."""
    if result.unsafe:
        facts = [("format", result.format), ("unsafe", ", ".join(result.unsafe))]
        return Display(lead=[result.file], facts=facts)
    return Display(
        lead=[result.file],
        facts=[(name, text) for name, text in _facts(result) if text],
        tables=[_table(result)],
        next=result.commands,
    )


def _facts(result: Inspection) -> Iterator[tuple[str, str]]:
    inside = f", in {result.container}" if result.container else ""
    values = sum(_numel(tensor) for tensor in result.tensors)
    yield "format", result.format + inside
    yield "tensors", f"{result.keys:,} with {values:,} values"
    yield "also in file", ", ".join(f"{path} ({count})" for path, count in result.beside.items())
    yield "prefix", result.prefix
    yield "network", _network(result)
    yield "also fits", ", ".join(result.rivals)
    yield "key mapping", "; ".join(result.how)
    yield "problem", result.problem
    yield "checksum", result.verified or "none in this format: damage cannot be detected"
    yield "missing", _first_names(result.missing)
    yield "unused", ", ".join(f"{module} ({count})" for module, count in result.unused.items())
    for matrix in result.prototypes:
        twins = f"{matrix['near_identical']:,} near-identical (cosine > 0.999)"
        yield (
            "prototypes",
            f"{matrix['count']:,} of dimension {matrix['width']}, {twins}: {matrix['name']}",
        )
    plain = {k: v for k, v in result.about.items() if not isinstance(v, dict | list | None)}
    yield "metadata", _first_names([f"{name} {value}" for name, value in plain.items()])
    yield "licence", result.licence


def _network(result: Inspection) -> str:
    if result.arch is None:
        return f"unknown: {result.closest}; give it with --arch NAME"
    stem = " with the small stem" if result.stem == "small" else ""
    head = f", head {', '.join(result.head)}" if result.head else ", no head of the standard size"
    return f"{result.arch}{stem}: {result.matched:.1%} of its backbone{head}"


def _table(result: Inspection) -> TextTable:
    """Number of tensors and values of each module, at most 24 rows."""
    modules: dict[str, list[int]] = {}
    for tensor in result.tensors:
        name = tensor["name"].removeprefix(result.prefix)
        modules.setdefault(name.partition(".")[0], []).append(_numel(tensor))
    rows = [(module, f"{len(sizes):,}", f"{sum(sizes):,}") for module, sizes in modules.items()]
    return TextTable(("module", "tensors", "values"), rows).first(24)


def _numel(tensor: Mapping[str, Any]) -> int:
    return math.prod(tensor["shape"])


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f", and {len(names) - 6} more" if len(names) > 6 else "")


def _inspection(
    source: Path, contents: CheckpointContents, best: ArchitectureMatch | None
) -> Inspection:
    match = best if best is not None and best.share >= LIKELY else None
    prefix = match.result.prefix if match else _common_prefix(contents.tensors)
    prototypes = _prototypes(source, contents)
    state, refused = _loadable(contents, source)
    problem = refused or _bad_tensor(state, match)
    how = [match.result.how, *match.result.notes] if match else []
    how += state.notes if state else ()
    return Inspection(
        file=str(source),
        format=contents.format,
        keys=len(contents.tensors),
        tensors=[_tensor(name, tensor) for name, tensor in contents.tensors.items()],
        prefix=prefix,
        arch=match.arch if match else None,
        stem=match.stem if match else None,
        matched=match.share if match else 0.0,
        head=list(match.head) if match and match.headed else [],
        how=[text for text in how if text],
        rivals=list(match.rivals) if match else [],
        problem=problem,
        verified=contents.verified,
        missing=_missing(match),
        unused=_counted(match.result.unexpected, prefix) if match else {},
        prototypes=prototypes,
        container=contents.container,
        beside={path or "(top)": len(inside) for path, inside in contents.beside.items()},
        about=contents.meta,
        closest=_closest(best) if not match else "",
        licence=licence_text(terms_of_file(contents, str(source))),
        commands=[] if problem else list(_commands(source, contents, match, prototypes)),
    )


def _prototypes(source: Path, contents: CheckpointContents) -> list[dict[str, Any]]:
    sets = [("", contents.tensors), *contents.beside.items()]
    if contents.format == "unfreeze model":
        sets += [("checkpoints/last.ckpt", head_weights_of_run(str(source))[0])]
    matrices = []
    for prefix, tensors in sets:
        plain = without_weight_norm({n: t for n, t in tensors.items() if not why_unusable(t, t)})
        for name in prototypes_in(plain):
            count, width = plain[name].shape
            full = f"{prefix}.{name}" if prefix else name
            twins = count_near_identical(plain[name])
            matrices.append({"name": full, "count": count, "width": width, "near_identical": twins})
    return matrices


def _commands(
    source: Path,
    contents: CheckpointContents,
    match: ArchitectureMatch | None,
    prototypes: list[dict[str, Any]],
) -> Iterator[str]:
    path = shlex.quote(str(source))
    if contents.format == "unfreeze model" and contents.meta["kind"] != "backbone":
        yield f"unfreeze predict {path} IMAGE..."
        return
    if match is None:
        return
    has_card = contents.card is not None  # an unfreeze model: it names its architecture
    how = "" if has_card else f" --arch {match.arch}"
    how += " --stem small" if match.stem == "small" and not has_card else ""
    how += " --allow-partial" if match.share < MIN_MATCHED_SHARE or match.result.mismatched else ""
    yield f"unfreeze finetune DATA --weights {path}{how} --out RUN"
    if prototypes:
        count = prototypes[0]["count"]
        yield f"unfreeze pretrain DATA --init {path}{how} --nmb-prototypes {count} --out RUN"


def _loadable(contents: CheckpointContents, path: Path) -> tuple[LoadableTensors | None, str]:
    """(the state dict ready to load, or None and why it cannot be loaded)."""
    try:
        return loadable_tensors(contents, path, str(path)), ""
    except WeightsError as refusal:
        return None, refusal.sentence


def _bad_tensor(state: LoadableTensors | None, match: ArchitectureMatch | None) -> str:
    """The first tensor with NaN, infinite or otherwise unusable values, with the reason; or ""."""
    if state is None or match is None:
        return ""
    expected = build_on_meta(match.arch, match.stem).state_dict()
    for name, source in match.result.pairs.items():
        for key in match.result.joined.get(source, (source,)):
            if reason := why_unusable(state.tensors[key], expected[name]):
                return f"{key} {reason}"
    return ""


def _missing(match: ArchitectureMatch | None) -> list[str]:
    if match is None:
        return []
    return [*match.result.missing, *(clash.wanted for clash in match.result.mismatched)]


def _closest(best: ArchitectureMatch | None) -> str:
    if best is None:
        return "it shares no tensors with any known classification network"
    return f"the closest is {best.arch}, {best.share:.1%} of its backbone"


def _common_prefix(names: Mapping[str, Any]) -> str:
    """The common prefix of all names, ending with a dot."""
    split = [name.split(".")[:-1] for name in names]
    shared = 0
    for level in zip(*split, strict=False):
        if len(set(level)) > 1:
            break
        shared += 1
    return (
        "".join(f"{name_part}." for name_part in split[0][:shared])
        if split and len(split) > 1
        else ""
    )


def _counted(names: tuple[str, ...], prefix: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        module = name.removeprefix(prefix).partition(".")[0]
        counts[module] = counts.get(module, 0) + 1
    return counts


def _tensor(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"name": name, "shape": list(tensor.shape), "dtype": dtype}
