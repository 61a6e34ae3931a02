"""`inspect`: what a checkpoint of any origin holds, which network it is of, and how to use it."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unfreeze.backbones.build import skeleton
from unfreeze.backbones.guess import LIKELY, Guess
from unfreeze.backbones.published import licence_of
from unfreeze.backbones.recognise import identified
from unfreeze.backbones.weights import ENOUGH
from unfreeze.checkpoints.modelfile import CARD, TENSORS, model_folder
from unfreeze.checkpoints.read import Contents, UnsafeFile, read_checkpoint
from unfreeze.checkpoints.usable import Usable, usable
from unfreeze.checkpoints.values import oddity
from unfreeze.errors import WeightsError
from unfreeze.runtime.console import Console, Quiet
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.layout import Table
from unfreeze.settings.build import build
from unfreeze.settings.use import InspectSettings
from unfreeze.swav.inherit import near_identical, prototypes_in, rest_of_run, without_weight_norm


@dataclass(frozen=True, repr=False)
class Inspection(Displayed):
    """What is in a file.

    `format`: "safetensors", "torch zip", "torch legacy", "pickle" or "unfreeze model"; `container`:
    the keys that lead to `tensors` (`name, shape, dtype`), of which there are `keys`; `prefix`:
    what stands before the network's own names; `arch`, `stem`: the network (None: unknown), of
    whose backbone's parameters the share `matched` is there, 0..1; `head`: names of its scoring
    layers where the file has them in the network's own size; `how`: what is done so that they fit;
    `rivals`: other networks that the file fits as well; `problem`: why it cannot be loaded, or "";
    `verified`: by which checksum its values were compared with what was written, "" where the
    format has none; `unused`: entries that are not the network's, counted by their first part;
    `prototypes`: `name, count, width, near_identical` (how many have a twin with a cosine above
    0.999) of each matrix of SwAV prototypes; `beside`: other sets of tensors in the file; `about`:
    plain values in it; `closest`: a sentence where `arch` is None; `licence`: one about the terms,
    or ""; `commands`: how to use it; `unsafe`: names of what could run code: nothing else is known
    of such a file.
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
        """Why the file cannot be used; None where it can."""
        if not self.unsafe:
            return None
        names = ", ".join(self.unsafe[:6])
        return WeightsError(
            f"{self.file} could run code on loading ({names}); it was not loaded.",
            "If you trust it, load it with the library that wrote it and save only its "
            "state_dict().",
        )

    def display(self) -> Display:
        """A few lines, a table of the parts, and the next command."""
        return _display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row a tensor: `name, shape, dtype`."""
        return self.tensors


def inspect(file: str | Path) -> Inspection:
    """What `file` holds: a checkpoint of any origin, a run's folder or its `model/` folder.

    A pickle that could run code is not loaded: `unsafe` names what it would call. WeightsError for
    what is truncated or no checkpoint.
    """
    return run_inspect(build(InspectSettings, {"file": str(file)}), Quiet())


@isolated()
def run_inspect(settings: InspectSettings, console: Console) -> Inspection:
    """The same from a settings object."""
    place = Path(settings.file)
    last = place / "checkpoints" / "last.ckpt"
    if place.is_dir() and model_folder(place) is None and last.exists():
        place = last  # a run that has not ended
    if place.name in (CARD, TENSORS) and model_folder(place) is not None:
        place = place.parent  # the two files are one model
    try:
        contents = read_checkpoint(place)
    except UnsafeFile as refusal:
        names = refusal.names or ["not from torch.save"]
        return Inspection(str(place), refusal.format, unsafe=names)
    return _inspection(place, contents, identified(contents, place))


def _display(found: Inspection) -> Display:
    """What there is to say, a row for each part of the names, and how to go on."""
    if found.unsafe:
        facts = [("format", found.format), ("unsafe", ", ".join(found.unsafe))]
        return Display(lead=[found.file], facts=facts)
    return Display(
        lead=[found.file],
        facts=[(name, text) for name, text in _facts(found) if text],
        tables=[_table(found)],
        next=found.commands,
    )


def _facts(found: Inspection) -> Iterator[tuple[str, str]]:
    inside = f", in {found.container}" if found.container else ""
    numbers = sum(_numbers(tensor) for tensor in found.tensors)
    yield "format", found.format + inside
    yield "tensors", f"{found.keys:,} of {numbers:,} numbers"
    yield "beside", ", ".join(f"{path} ({count})" for path, count in found.beside.items())
    yield "prefix", found.prefix
    yield "network", _network(found)
    yield "as well", ", ".join(found.rivals)
    yield "paired", "; ".join(found.how)
    yield "problem", found.problem
    yield "checksum", found.verified or "none in this format: damage inside it would not show"
    yield "missing", _some(found.missing)
    yield "not its", ", ".join(f"{part} ({count})" for part, count in found.unused.items())
    for one in found.prototypes:
        twins = f"{one['near_identical']:,} of them near-identical (cosine > 0.999)"
        yield "prototypes", f"{one['count']:,} of {one['width']} numbers, {twins}: {one['name']}"
    plain = {k: v for k, v in found.about.items() if not isinstance(v, dict | list | None)}
    yield "about", _some([f"{name} {value}" for name, value in plain.items()])
    yield "licence", found.licence


def _network(found: Inspection) -> str:
    if found.arch is None:
        return f"unknown: {found.closest}; --arch NAME says it"
    stem = " with the small stem" if found.stem == "small" else ""
    head = f", head {', '.join(found.head)}" if found.head else ", no head of its own size"
    return f"{found.arch}{stem}: {found.matched:.1%} of its backbone{head}"


def _table(found: Inspection) -> Table:
    """Tensors and numbers of each part of the names, at most 24 rows."""
    parts: dict[str, list[int]] = {}
    for tensor in found.tensors:
        name = tensor["name"].removeprefix(found.prefix)
        parts.setdefault(name.partition(".")[0], []).append(_numbers(tensor))
    rows = [(part, f"{len(sizes):,}", f"{sum(sizes):,}") for part, sizes in parts.items()]
    return Table(("part", "tensors", "numbers"), rows).first(24)


def _numbers(tensor: Mapping[str, Any]) -> int:
    return math.prod(tensor["shape"])


def _some(words: list[str]) -> str:
    return ", ".join(words[:6]) + (f", and {len(words) - 6} more" if len(words) > 6 else "")


def _inspection(place: Path, contents: Contents, best: Guess | None) -> Inspection:
    sure = best if best is not None and best.share >= LIKELY else None
    prefix = sure.result.prefix if sure else _common(contents.tensors)
    prototypes = _prototypes(place, contents)
    ready, refused = _ready(contents, place)
    problem = refused or _odd(ready, sure)
    how = [sure.result.how, *sure.result.notes] if sure else []
    how += ready.notes if ready else ()
    return Inspection(
        file=str(place),
        format=contents.format,
        keys=len(contents.tensors),
        tensors=[_tensor(name, tensor) for name, tensor in contents.tensors.items()],
        prefix=prefix,
        arch=sure.arch if sure else None,
        stem=sure.stem if sure else None,
        matched=sure.share if sure else 0.0,
        head=list(sure.head) if sure and sure.headed else [],
        how=[text for text in how if text],
        rivals=list(sure.rivals) if sure else [],
        problem=problem,
        verified=contents.verified,
        missing=_missing(sure),
        unused=_counted(sure.result.unexpected, prefix) if sure else {},
        prototypes=prototypes,
        container=contents.container,
        beside={path or "(top)": len(inside) for path, inside in contents.beside.items()},
        about=contents.meta,
        closest=_closest(best) if not sure else "",
        licence=licence_of(str(place)),
        commands=[] if problem else list(_commands(place, contents, sure, prototypes)),
    )


def _prototypes(place: Path, contents: Contents) -> list[dict[str, Any]]:
    sets = [("", contents.tensors), *contents.beside.items()]
    if contents.format == "unfreeze model":
        sets += [("checkpoints/last.ckpt", rest_of_run(str(place))[0])]
    found = []
    for path, tensors in sets:
        plain = without_weight_norm({n: t for n, t in tensors.items() if not oddity(t, t)})
        for name in prototypes_in(plain):
            count, width = plain[name].shape
            full = f"{path}.{name}" if path else name
            twins = near_identical(plain[name])
            found.append({"name": full, "count": count, "width": width, "near_identical": twins})
    return found


def _commands(
    place: Path, contents: Contents, sure: Guess | None, prototypes: list[dict[str, Any]]
) -> Iterator[str]:
    given = shlex.quote(str(place))
    if contents.format == "unfreeze model" and contents.meta["kind"] == "classifier":
        yield f"unfreeze predict {given} IMAGE..."
        return
    if sure is None:
        return
    own = contents.card is not None  # says its network itself
    how = "" if own else f" --arch {sure.arch}"
    how += " --stem small" if sure.stem == "small" and not own else ""
    how += " --allow-partial" if sure.share < ENOUGH or sure.result.mismatched else ""
    yield f"unfreeze finetune DATA --weights {given}{how} --out RUN"
    if prototypes:
        count = prototypes[0]["count"]
        yield f"unfreeze pretrain DATA --init {given}{how} --nmb-prototypes {count} --out RUN"


def _ready(contents: Contents, place: Path) -> tuple[Usable | None, str]:
    """(the tensors as a network would be given them, why there are none)."""
    try:
        return usable(contents, place, str(place)), ""
    except WeightsError as refusal:
        return None, refusal.sentence


def _odd(ready: Usable | None, sure: Guess | None) -> str:
    """The first tensor that holds no plain, finite numbers, with the reason; "" for none."""
    if ready is None or sure is None:
        return ""
    wanted = skeleton(sure.arch, sure.stem).state_dict()
    for own, theirs in sure.result.pairs.items():
        for part in sure.result.joined.get(theirs, (theirs,)):
            if reason := oddity(ready.tensors[part], wanted[own]):
                return f"{part} {reason}"
    return ""


def _missing(sure: Guess | None) -> list[str]:
    if sure is None:
        return []
    return [*sure.result.missing, *(clash.wanted for clash in sure.result.mismatched)]


def _closest(best: Guess | None) -> str:
    if best is None:
        return "no classification network of torchvision's or ours has anything in common with it"
    return f"the closest is {best.arch}, of whose backbone {best.share:.1%} is there"


def _common(names: Mapping[str, Any]) -> str:
    """The leading parts that all names share."""
    split = [name.split(".")[:-1] for name in names]
    shared = 0
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return "".join(f"{part}." for part in split[0][:shared]) if split and len(split) > 1 else ""


def _counted(names: tuple[str, ...], prefix: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        part = name.removeprefix(prefix).partition(".")[0]
        counts[part] = counts.get(part, 0) + 1
    return counts


def _tensor(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"name": name, "shape": list(tensor.shape), "dtype": dtype}
