"""Matches a checkpoint's parameter names with a network's, by search instead of fixed rules."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from unfreeze.checkpoints.key_dialects import concatenated_shape, translated_names
from unfreeze.checkpoints.shape_matching import match_by_order

Shape = tuple[int, ...]

# How many prefixes with numbered children are tried, those with the most elements first.
PREFIXES_TRIED = 4


def children_by_number(
    file_shapes: Mapping[str, Shape], model_names: Iterable[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """(prefix, network name -> file name) for each prefix with numbered children.

    Children with parameters are matched in order: numbers have gaps at children without any (a
    ReLU), and libraries differ in where these are.
    """
    children = list(dict.fromkeys(name.partition(".")[0] for name in model_names))
    groups: defaultdict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for name in file_shapes:
        parts = name.split(".")
        for position in range(len(parts) - 1):
            if parts[position].isdecimal():
                prefix = "".join(f"{part}." for part in parts[:position])
                rest = ".".join(parts[position + 1 :])
                groups[prefix].append((int(parts[position]), rest, name))
    elements = {
        prefix: sum(math.prod(file_shapes[name]) for _, _, name in group)
        for prefix, group in groups.items()
    }
    for prefix in sorted(groups, key=lambda candidate: -elements[candidate])[:PREFIXES_TRIED]:
        numbers = sorted({number for number, _, _ in groups[prefix]})
        if len(numbers) <= len(children):
            child = dict(zip(numbers, children, strict=False))
            yield prefix, {f"{child[number]}.{rest}": name for number, rest, name in groups[prefix]}


def match_renamed_parts(
    unmatched: Mapping[str, Shape], missing: Mapping[str, Shape], known: set[str]
) -> dict[str, str]:
    """Missing name -> unmatched name with an equal shape that differs in one inner part.

    `unmatched`: shapes of the file's names without their prefix; `missing`: shapes in the network;
    `known`: the parts of all the network's names. The differing parts must be words that only
    their side has, and always correspond to each other.
    """
    foreign = {part for name in unmatched for part in name.split(".")}
    candidates: defaultdict[object, list[tuple[str, str]]] = defaultdict(list)
    for name, shape in missing.items():
        for frame, word in _frames(name):
            if word not in foreign:
                candidates[frame, shape].append((word, name))
    fits = [
        (file_word, *candidates[frame, shape][0], name)
        for name, shape in unmatched.items()
        for frame, file_word in _frames(name)
        if file_word not in known and len(candidates.get((frame, shape), ())) == 1
    ]
    words: dict[str, str] = {}
    for (file_word, model_word), _ in Counter((fit[0], fit[1]) for fit in fits).most_common():
        if file_word not in words and model_word not in words.values():
            words[file_word] = model_word
    return {
        model_name: name
        for file_word, model_word, model_name, name in fits
        if words.get(file_word) == model_word
    }


def _frames(name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(name with one inner part as `*`, that part), for each part but the first and last."""
    parts = name.split(".")
    for position in range(1, len(parts) - 1):
        if not parts[position].isdecimal():
            yield (*parts[:position], "*", *parts[position + 1 :]), parts[position]


# How many (strip, add) prefixes are tried in full, those with the most matching weights first.
MAX_PREFIXES = 64
# Words for averaged (EMA) weights: of two copies that match equally, the averaged one is used.
AVERAGED = {"ema", "teacher", "averaged", "average"}
# Below this matched share, names are also read as numbered children and as other libraries' names,
# and finally ignored in favour of the order of shapes.
GOOD_SHARE = 0.9


@dataclass(frozen=True)
class ShapeMismatch:
    """A tensor of the file whose name matches an entry of the network, but not its shape."""

    found: str
    wanted: str
    found_shape: Shape
    wanted_shape: Shape


@dataclass(frozen=True)
class KeyMatch:
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
    mismatched: tuple[ShapeMismatch, ...]
    share: float
    joined: dict[str, tuple[str, ...]] = field(default_factory=dict)
    how: str = ""
    doubt: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _PrefixChange:
    """Replaces the prefix `strip` of a name in the file by `add`."""

    strip: str = ""
    add: str = ""

    def __call__(self, name: str) -> str | None:
        return self.add + name[len(self.strip) :] if name.startswith(self.strip) else None


def match_keys(file_shapes: Mapping[str, Shape], model_shapes: Mapping[str, Shape]) -> KeyMatch:
    """The match with the most elements of equal name and shape.

    All prefixes (`module.`, `model.backbone.`, ...) are tried with which some name of the file
    ends like one of the network; inside a name, unknown parts (`features.module.0`) are skipped,
    and `norm.1` or `norm_1` matches `norm1`. Missing names are then searched with another word for
    one part (`shortcut`, `downsample`). If much is still missing, the network's children by number
    (`4.0.conv1` for `layer1.0.conv1`), the names of other libraries and the order of shapes are
    tried. Pure: shapes in, names out.
    """
    best = _by_name(file_shapes, model_shapes)
    if best.share < GOOD_SHARE:
        for prefix, names in children_by_number(file_shapes, model_shapes):
            candidate = _by_name(
                {new: file_shapes[name] for new, name in names.items()}, model_shapes
            )
            if candidate.share > best.share:
                best = _with_original_names(candidate, prefix, names, file_shapes)
    if best.share < GOOD_SHARE:
        best = _by_translation(best, file_shapes, model_shapes)
    return best


def _by_translation(
    best: KeyMatch, file_shapes: Mapping[str, Shape], model_shapes: Mapping[str, Shape]
) -> KeyMatch:
    """The match by other libraries' names or by the order of shapes, if better than `best`."""
    translated = list(translated_names(file_shapes))
    for owner, names in translated:
        shapes = {new: concatenated_shape(olds, file_shapes) for new, olds in names.items()}
        candidate = _by_name(shapes, model_shapes)
        if candidate.share > best.share:
            best = _with_file_names(candidate, names, file_shapes, f"by the names of {owner}")
    if best.share >= GOOD_SHARE:
        return best
    tables: list[Mapping[str, tuple[str, ...]]] = [{name: (name,) for name in file_shapes}]
    tables += [names for _, names in translated[-1:]]
    for table in tables:
        shapes = {new: concatenated_shape(olds, file_shapes) for new, olds in table.items()}
        order = match_by_order(shapes, model_shapes)
        if order is None:
            continue
        if order.doubt:
            return replace(best, doubt=order.doubt)
        share = _elements(order.pairs, model_shapes) / max(_elements(model_shapes, model_shapes), 1)
        if share > best.share:
            missing = tuple(name for name in model_shapes if name not in order.pairs)
            matched = KeyMatch("", order.pairs, missing, (), (), share)
            best = _with_file_names(matched, table, file_shapes, "by the order of their shapes")
    return best


def _with_file_names(
    matched: KeyMatch,
    names: Mapping[str, tuple[str, ...]],
    file_shapes: Mapping[str, Shape],
    how: str,
) -> KeyMatch:
    """A match of translated names with the file's names; concatenated tensors keep the new one."""
    pairs = {
        model_name: names[new][0] if len(names[new]) == 1 else new
        for model_name, new in matched.pairs.items()
    }
    used_names = [*matched.pairs.values(), *(clash.found for clash in matched.mismatched)]
    used = {old for new in used_names for old in names[new]}
    unexpected = tuple(name for name in file_shapes if name not in used)
    joined = {new: names[new] for new in matched.pairs.values() if len(names[new]) > 1}
    return replace(matched, prefix="", pairs=pairs, unexpected=unexpected, joined=joined, how=how)


def _by_name(file_shapes: Mapping[str, Shape], model_shapes: Mapping[str, Shape]) -> KeyMatch:
    known = {part for name in model_shapes for part in name.split(".")}
    inner = {name: _unwrapped(name, known) for name in file_shapes}
    best = max(
        _candidates(file_shapes, inner, model_shapes),
        key=lambda change: _score(change, file_shapes, inner, model_shapes),
    )
    matched = _pair_names(best, file_shapes, inner, model_shapes)
    matched |= _by_renaming(best, file_shapes, model_shapes, matched)
    fitting = {
        model_name: file_name
        for model_name, file_name in matched.items()
        if file_shapes[file_name] == model_shapes[model_name]
    }
    clashing = [
        ShapeMismatch(
            file_name, model_name, tuple(file_shapes[file_name]), tuple(model_shapes[model_name])
        )
        for model_name, file_name in matched.items()
        if model_name not in fitting
    ]
    used = set(matched.values())
    return KeyMatch(
        prefix=best.strip if matched else "",
        pairs=fitting,
        missing=tuple(name for name in model_shapes if name not in matched),
        unexpected=tuple(name for name in file_shapes if name not in used),
        mismatched=tuple(clashing),
        share=_elements(fitting, model_shapes) / max(_elements(model_shapes, model_shapes), 1),
    )


def _with_original_names(
    matched: KeyMatch, prefix: str, names: Mapping[str, str], file_shapes: Mapping[str, Shape]
) -> KeyMatch:
    """A match of renamed entries, with the names of the file."""
    pairs = {model_name: names[new] for model_name, new in matched.pairs.items()}
    clashing = tuple(replace(clash, found=names[clash.found]) for clash in matched.mismatched)
    used = {*pairs.values(), *(clash.found for clash in clashing)}
    unexpected = tuple(name for name in file_shapes if name not in used)
    return replace(matched, prefix=prefix, pairs=pairs, unexpected=unexpected, mismatched=clashing)


def _by_renaming(
    change: _PrefixChange,
    file_shapes: Mapping[str, Shape],
    model_shapes: Mapping[str, Shape],
    matched: Mapping[str, str],
) -> dict[str, str]:
    missing = {name: shape for name, shape in model_shapes.items() if name not in matched}
    used = set(matched.values())
    unmatched = {change(name) or "": name for name in file_shapes if missing and name not in used}
    shapes = {target: file_shapes[name] for target, name in unmatched.items() if target}
    known = {part for name in model_shapes for part in name.split(".")}
    return {
        model_name: unmatched[file_name]
        for model_name, file_name in match_renamed_parts(shapes, missing, known).items()
    }


def is_averaged(path: str) -> bool:
    """Whether a dotted path contains a word for averaged weights: `model_ema`, `teacher`."""
    return not AVERAGED.isdisjoint(re.split(r"[._]", path.lower()))


def _score(
    change: _PrefixChange,
    file_shapes: Mapping[str, Shape],
    inner: Mapping[str, str],
    model_shapes: Mapping[str, Shape],
) -> tuple[int, bool, int]:
    matched = _pair_names(change, file_shapes, inner, model_shapes)
    elements = _elements(
        (w for w, f in matched.items() if file_shapes[f] == model_shapes[w]), model_shapes
    )
    return elements, is_averaged(change.strip), len(matched)


def _candidates(
    file_shapes: Mapping[str, Shape], inner: Mapping[str, str], model_shapes: Mapping[str, Shape]
) -> list[_PrefixChange]:
    """Prefix replacements that some names suggest: none first, then by number of elements."""
    endings: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in model_shapes:
        for start, ending in _endings(name):
            endings[ending].append((start, name))
    squeezed = {(_without_separators(name), shape) for name, shape in model_shapes.items()}
    votes: Counter[_PrefixChange] = Counter()
    for name, shape in file_shapes.items():
        for written in dict.fromkeys((name, inner[name])):
            agreeing = _by_ending(written, shape, endings, model_shapes)
            for change in {*agreeing, *_by_squeezed_ending(written, shape, squeezed)}:
                votes[change] += math.prod(shape)
    ranked = [change for change, _ in votes.most_common(MAX_PREFIXES)]
    return list(dict.fromkeys([_PrefixChange(), *ranked]))


def _by_ending(
    name: str,
    shape: Shape,
    endings: Mapping[str, list[tuple[str, str]]],
    model_shapes: Mapping[str, Shape],
) -> list[_PrefixChange]:
    """Replacements by the longest ending shared with names of the network of the same shape."""
    for strip, ending in _endings(name):
        starts = [start for start, want in endings.get(ending, ()) if model_shapes[want] == shape]
        if starts:
            return [_PrefixChange(strip, add) for add in starts]
    return []


def _by_squeezed_ending(
    name: str, shape: Shape, squeezed: set[tuple[str, Shape]]
) -> list[_PrefixChange]:
    """The replacement that gives a name of the network up to separators."""
    for strip, ending in _endings(name):
        if (_without_separators(ending), shape) in squeezed:
            return [_PrefixChange(strip)]
    return []


def _endings(name: str) -> Iterable[tuple[str, str]]:
    """(`a.b.`, `c`) for every split of a dotted name, the longest ending first."""
    parts = name.split(".")
    for split in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:split]), ".".join(parts[split:])


def _pair_names(
    change: _PrefixChange,
    file_shapes: Mapping[str, Shape],
    inner: Mapping[str, str],
    model_shapes: Mapping[str, Shape],
) -> dict[str, str]:
    """Network name -> file name: as written, then without inner wrappers, then without dots."""
    pairs: dict[str, str] = {}
    for write in (lambda name: name, lambda name: inner[name]):
        used = set(pairs.values())
        for name in file_shapes:
            target = change(write(name))
            if target and target in model_shapes and target not in pairs and name not in used:
                pairs[target] = name
    return pairs | _pair_without_separators(change, file_shapes, model_shapes, pairs)


def _pair_without_separators(
    change: _PrefixChange,
    file_shapes: Mapping[str, Shape],
    model_shapes: Mapping[str, Shape],
    pairs: Mapping[str, str],
) -> dict[str, str]:
    used = set(pairs.values())
    missing: defaultdict[str, list[str]] = defaultdict(list)
    for name in model_shapes:
        if name not in pairs:
            missing[_without_separators(name)].append(name)
    extra: dict[str, str] = {}
    for name, shape in file_shapes.items():
        target = change(name) if missing and name not in used else None
        candidates = missing.get(_without_separators(target), []) if target else []
        if (
            len(candidates) == 1
            and candidates[0] not in extra
            and model_shapes[candidates[0]] == shape
        ):
            extra[candidates[0]] = name
    return extra


def _without_separators(name: str) -> str:
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
