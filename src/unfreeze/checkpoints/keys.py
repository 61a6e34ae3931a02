"""Names in a checkpoint brought together with names in a network, by search instead of a list."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from unfreeze.checkpoints.dialects import shape_of, variants
from unfreeze.checkpoints.ordered import in_order
from unfreeze.checkpoints.respelled import numbered, renamed

Shape = tuple[int, ...]

# How many (strip, add) pairs are tried in full, those with the most agreeing weights first.
TRIED = 64
# Of two copies that fit equally well the averaged one is taken: it is the better network.
AVERAGED = {"ema", "teacher", "averaged", "average"}
# Below this share the names are also read as children by number, as those of other libraries, and
# at last not at all.
PLAIN = 0.9


@dataclass(frozen=True)
class Mismatch:
    """A name that fits and a shape that does not."""

    found: str
    wanted: str
    found_shape: Shape
    wanted_shape: Shape


@dataclass(frozen=True)
class Match:
    """Which tensor of a file belongs to which entry of a network.

    `prefix`: what stood before the names in the file; `pairs`: wanted name -> name in the file;
    `missing`: wanted names the file lacks; `unexpected`: names in the file that found no place;
    `share`: matched elements / wanted elements, 0..1; `joined`: names in `pairs` that are not in
    the file -> those that make them, one below the other; `how`: in words, where not by plain
    names; `doubt`: why a pairing by order was not taken; `notes`: what else is done to fit.
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
    """Take `strip` off the front of a name in the file, put `add` there."""

    strip: str = ""
    add: str = ""

    def __call__(self, name: str) -> str | None:
        return self.add + name[len(self.strip) :] if name.startswith(self.strip) else None


def match(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Match:
    """The pairing of names with the most matched elements (by name and shape).

    Tried are all leading parts (`module.`, `model.backbone.`, ...) that make some name of the file
    end like a wanted one; inside a name, parts that no wanted name has (`features.module.0`) are
    passed over, and `norm.1` or `norm_1` is taken for `norm1`. What then lacks is sought under
    another word for one part (`shortcut`, `downsample`), and where that is much, under the numbers
    of the network's children (`4.0.conv1` for `layer1.0.conv1`), under the names of other
    libraries, and by the order of shapes. Pure: shapes in, names out.
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
    """The pairing by other libraries' names or by the order of shapes, where that is better."""
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
    """A match of translated entries in the words of the file; of joined ones in their own."""
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
    """A match of renamed entries in the words of the file."""
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
    """Whether a dotted path has a word for averaged weights in it: `model_ema`, `teacher`."""
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
    """Repairs on which some names agree; plain first, then by the weights that speak for them."""
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
    """Repairs by the longest ending this name shares with wanted names of its shape."""
    for strip, ending in _endings(name):
        starts = [start for start, want in endings.get(ending, ()) if wanted[want] == shape]
        if starts:
            return [_Repair(strip, add) for add in starts]
    return []


def _squeezable(name: str, shape: Shape, squeezed: set[tuple[str, Shape]]) -> list[_Repair]:
    """The repair that leaves a wanted name but for what separates its parts."""
    for strip, ending in _endings(name):
        if (_squeezed(ending), shape) in squeezed:
            return [_Repair(strip)]
    return []


def _endings(name: str) -> Iterable[tuple[str, str]]:
    """(`a.b.`, `c`) for every place at which a dotted name can be cut, longest ending first."""
    parts = name.split(".")
    for cut in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:cut]), ".".join(parts[cut:])


def _paired(
    repair: _Repair,
    found: Mapping[str, Shape],
    inner: Mapping[str, str],
    wanted: Mapping[str, Shape],
) -> dict[str, str]:
    """Wanted name -> found name: as written, then without wrappers inside, then without dots."""
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
    """A name without what separates its parts: timm's feature extractors write `stages_0`."""
    return name.replace(".", "").replace("_", "")


def _unwrapped(name: str, known: set[str]) -> str:
    """A name without the unknown parts that stand between known ones: wrappers, not layers."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part in known), len(parts))
    middle = [part for part in parts[first:-1] if part in known or part.isdecimal()]
    return ".".join([*parts[:first], *middle, *parts[max(first, len(parts) - 1) :]])


def _elements(names: Iterable[str], shapes: Mapping[str, Shape]) -> int:
    return sum(math.prod(shapes[name]) for name in names)
