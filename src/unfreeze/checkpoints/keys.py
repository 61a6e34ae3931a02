"""Matches a checkpoint's parameter names with a network's, by search instead of fixed rules."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from unfreeze.checkpoints.dialects import shape_of, variants
from unfreeze.checkpoints.ordered import in_order
from unfreeze.checkpoints.respelled import numbered, renamed

Shape = tuple[int, ...]

# How many (strip, add) prefixes are tried in full, those with the most matching weights first.
TRIED = 64
# Words for averaged (EMA) weights: of two copies that match equally, the averaged one is used.
AVERAGED = {"ema", "teacher", "averaged", "average"}
# Below this matched share, names are also read as numbered children and as other libraries' names,
# and finally ignored in favour of the order of shapes.
PLAIN = 0.9


@dataclass(frozen=True)
class Mismatch:
    """A tensor of the file whose name matches an entry of the network, but not its shape."""

    found: str
    wanted: str
    found_shape: Shape
    wanted_shape: Shape


@dataclass(frozen=True)
class Match:
    """Which tensor of a file belongs to which entry of a network.

    `prefix`: prefix of the names in the file; `pairs`: name in the network -> name in the file;
    `missing`: names of the network that the file lacks; `unexpected`: unmatched names of the file;
    `share`: matched elements / elements of the network, 0..1; `joined`: names in `pairs` that are
    concatenated from these names of the file; `how`: the way of matching in words, "" for plain
    names; `doubt`: why a match by order of shapes was rejected; `notes`: shape adaptations.
    """

    prefix: str
    pairs: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    share: float
    joined: dict[str, tuple[str, ...]] = field(default_factory=dict)
    how: str = ""
    doubt: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Repair:
    """Replaces the prefix `strip` of a name in the file by `add`."""

    strip: str = ""
    add: str = ""

    def __call__(self, name: str) -> str | None:
        return self.add + name[len(self.strip) :] if name.startswith(self.strip) else None


def match(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Match:
    """The match with the most elements of equal name and shape.

    `found`: shapes in the file by name; `wanted`: shapes in the network. All prefixes (`module.`,
    `model.backbone.`, ...) are tried with which some name of the file ends like one of the
    network; inside a name, unknown parts (`features.module.0`) are skipped, and `norm.1` or
    `norm_1` matches `norm1`. Missing names are then searched with another word for one part
    (`shortcut`, `downsample`). If much is still missing, the network's children by number
    (`4.0.conv1` for `layer1.0.conv1`), the names of other libraries and the order of shapes are
    tried. Pure: shapes in, names out.
    """
    best = _by_name(found, wanted)
    if best.share < PLAIN:
        for prefix, names in numbered(found, wanted):
            other = _by_name({new: found[name] for new, name in names.items()}, wanted)
            if other.share > best.share:
                best = _as_written(other, prefix, names, found)
    if best.share < PLAIN:
        best = _in_other_words(best, found, wanted)
    return best


def _in_other_words(best: Match, found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Match:
    """The match by other libraries' names or by the order of shapes, if better than `best`."""
    translated = list(variants(found))
    for owner, names in translated:
        shapes = {new: shape_of(olds, found) for new, olds in names.items()}
        other = _by_name(shapes, wanted)
        if other.share > best.share:
            best = _translated(other, names, found, f"by the names of {owner}")
    if best.share >= PLAIN:
        return best
    tried: list[Mapping[str, tuple[str, ...]]] = [{name: (name,) for name in found}]
    tried += [names for _, names in translated[-1:]]
    for table in tried:
        shapes = {new: shape_of(olds, found) for new, olds in table.items()}
        order = in_order(shapes, wanted)
        if order is None:
            continue
        if order.doubt:
            return replace(best, doubt=order.doubt)
        share = _elements(order.pairs, wanted) / max(_elements(wanted, wanted), 1)
        if share > best.share:
            missing = tuple(name for name in wanted if name not in order.pairs)
            made = Match("", order.pairs, missing, (), (), share)
            best = _translated(made, table, found, "by the order of their shapes")
    return best


def _translated(
    made: Match, names: Mapping[str, tuple[str, ...]], found: Mapping[str, Shape], how: str
) -> Match:
    """A match of translated names with the file's names; concatenated tensors keep the new one."""
    pairs = {
        want: names[new][0] if len(names[new]) == 1 else new for want, new in made.pairs.items()
    }
    taken = [*made.pairs.values(), *(clash.found for clash in made.mismatched)]
    used = {old for new in taken for old in names[new]}
    left = tuple(name for name in found if name not in used)
    joined = {new: names[new] for new in made.pairs.values() if len(names[new]) > 1}
    return replace(made, prefix="", pairs=pairs, unexpected=left, joined=joined, how=how)


def _by_name(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Match:
    known = {part for name in wanted for part in name.split(".")}
    inner = {name: _unwrapped(name, known) for name in found}
    best = max(
        _candidates(found, inner, wanted),
        key=lambda repair: _score(repair, found, inner, wanted),
    )
    named = _paired(best, found, inner, wanted)
    named |= _by_another_word(best, found, wanted, named)
    fitting = {want: have for want, have in named.items() if found[have] == wanted[want]}
    clashing = [
        Mismatch(have, want, tuple(found[have]), tuple(wanted[want]))
        for want, have in named.items()
        if want not in fitting
    ]
    used = set(named.values())
    return Match(
        prefix=best.strip if named else "",
        pairs=fitting,
        missing=tuple(name for name in wanted if name not in named),
        unexpected=tuple(name for name in found if name not in used),
        mismatched=tuple(clashing),
        share=_elements(fitting, wanted) / max(_elements(wanted, wanted), 1),
    )


def _as_written(
    made: Match, prefix: str, names: Mapping[str, str], found: Mapping[str, Shape]
) -> Match:
    """A match of renamed entries, with the names of the file."""
    pairs = {want: names[new] for want, new in made.pairs.items()}
    clashing = tuple(replace(clash, found=names[clash.found]) for clash in made.mismatched)
    used = {*pairs.values(), *(clash.found for clash in clashing)}
    left = tuple(name for name in found if name not in used)
    return replace(made, prefix=prefix, pairs=pairs, unexpected=left, mismatched=clashing)


def _by_another_word(
    repair: _Repair,
    found: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    named: Mapping[str, str],
) -> dict[str, str]:
    lacking = {name: shape for name, shape in wanted.items() if name not in named}
    taken = set(named.values())
    left = {repair(name) or "": name for name in found if lacking and name not in taken}
    shapes = {target: found[name] for target, name in left.items() if target}
    known = {part for name in wanted for part in name.split(".")}
    return {want: left[have] for want, have in renamed(shapes, lacking, known).items()}


def is_averaged(path: str) -> bool:
    """Whether a dotted path contains a word for averaged weights: `model_ema`, `teacher`."""
    return not AVERAGED.isdisjoint(re.split(r"[._]", path.lower()))


def _score(
    repair: _Repair,
    found: Mapping[str, Shape],
    inner: Mapping[str, str],
    wanted: Mapping[str, Shape],
) -> tuple[int, bool, int]:
    named = _paired(repair, found, inner, wanted)
    elements = _elements((w for w, f in named.items() if found[f] == wanted[w]), wanted)
    return elements, is_averaged(repair.strip), len(named)


def _candidates(
    found: Mapping[str, Shape], inner: Mapping[str, str], wanted: Mapping[str, Shape]
) -> list[_Repair]:
    """Prefix replacements that some names suggest: none first, then by number of elements."""
    endings: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in wanted:
        for start, ending in _endings(name):
            endings[ending].append((start, name))
    squeezed = {(_squeezed(name), shape) for name, shape in wanted.items()}
    votes: Counter[_Repair] = Counter()
    for name, shape in found.items():
        for written in dict.fromkeys((name, inner[name])):
            agreeing = _agreeing(written, shape, endings, wanted)
            for repair in {*agreeing, *_squeezable(written, shape, squeezed)}:
                votes[repair] += math.prod(shape)
    ranked = [repair for repair, _ in votes.most_common(TRIED)]
    return list(dict.fromkeys([_Repair(), *ranked]))


def _agreeing(
    name: str,
    shape: Shape,
    endings: Mapping[str, list[tuple[str, str]]],
    wanted: Mapping[str, Shape],
) -> list[_Repair]:
    """Replacements by the longest ending shared with names of the network of the same shape."""
    for strip, ending in _endings(name):
        starts = [start for start, want in endings.get(ending, ()) if wanted[want] == shape]
        if starts:
            return [_Repair(strip, add) for add in starts]
    return []


def _squeezable(name: str, shape: Shape, squeezed: set[tuple[str, Shape]]) -> list[_Repair]:
    """The replacement that gives a name of the network up to separators."""
    for strip, ending in _endings(name):
        if (_squeezed(ending), shape) in squeezed:
            return [_Repair(strip)]
    return []


def _endings(name: str) -> Iterable[tuple[str, str]]:
    """(`a.b.`, `c`) for every split of a dotted name, the longest ending first."""
    parts = name.split(".")
    for cut in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:cut]), ".".join(parts[cut:])


def _paired(
    repair: _Repair,
    found: Mapping[str, Shape],
    inner: Mapping[str, str],
    wanted: Mapping[str, Shape],
) -> dict[str, str]:
    """Network name -> file name: as written, then without inner wrappers, then without dots."""
    pairs: dict[str, str] = {}
    for write in (lambda name: name, lambda name: inner[name]):
        taken = set(pairs.values())
        for name in found:
            target = repair(write(name))
            if target and target in wanted and target not in pairs and name not in taken:
                pairs[target] = name
    return pairs | _without_dots(repair, found, wanted, pairs)


def _without_dots(
    repair: _Repair,
    found: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    pairs: Mapping[str, str],
) -> dict[str, str]:
    taken = set(pairs.values())
    left: defaultdict[str, list[str]] = defaultdict(list)
    for name in wanted:
        if name not in pairs:
            left[_squeezed(name)].append(name)
    extra: dict[str, str] = {}
    for name, shape in found.items():
        target = repair(name) if left and name not in taken else None
        places = left.get(_squeezed(target), []) if target else []
        if len(places) == 1 and places[0] not in extra and wanted[places[0]] == shape:
            extra[places[0]] = name
    return extra


def _squeezed(name: str) -> str:
    """A name without separators: timm's feature extractors write `stages_0`."""
    return name.replace(".", "").replace("_", "")


def _unwrapped(name: str, known: set[str]) -> str:
    """A name without unknown parts between known ones: those are wrappers, not layers."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part in known), len(parts))
    middle = [part for part in parts[first:-1] if part in known or part.isdecimal()]
    return ".".join([*parts[:first], *middle, *parts[max(first, len(parts) - 1) :]])


def _elements(names: Iterable[str], shapes: Mapping[str, Shape]) -> int:
    return sum(math.prod(shapes[name]) for name in names)
