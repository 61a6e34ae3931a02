"""Matches a network with unknown parameter names by the order of shapes, if that is unambiguous.

Two implementations of a network mostly define its layers in the same order, so that their state
dicts are the same sequence of shapes. This is conclusive only if no layers could be swapped: for
layers with equal shapes the names must show the order, by numbers or by common words.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Shape = tuple[int, ...]

# last part of a parameter name -> its role, with PyTorch's name
_ROLES = {
    **dict.fromkeys(("weight", "kernel", "gamma", "w", "scale"), "weight"),
    **dict.fromkeys(("bias", "beta", "b", "offset"), "bias"),
    **dict.fromkeys(("running_mean", "moving_mean", "mean"), "running_mean"),
    **dict.fromkeys(("running_var", "moving_variance", "moving_var", "var"), "running_var"),
}
_PLAIN = {name: name for name in ("weight", "bias", "running_mean", "running_var")}
_COUNTS = "num_batches_tracked"
FEWEST = 4  # layers; a shorter sequence is not conclusive


@dataclass(frozen=True)
class _Layer:
    """A matrix or kernel with the vectors that follow it: names and shapes in order."""

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class InOrder:
    """`pairs`: network name -> file name; `doubt`: why the match is ambiguous, "" if it is not."""

    pairs: dict[str, str]
    doubt: str = ""


def in_order(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> InOrder | None:
    """The match by the order of shapes; None if the two sequences differ.

    The network's layers must be consecutive in the file; the last one (a head) may have another
    number of classes, or be absent. num_batches_tracked is ignored in the order.
    """
    ours, theirs = _layers(wanted), _layers(found)
    for wide, cut in ((ours, 0), (ours[:-1], 1)):
        if len(wide) < FEWEST:
            return None
        starts = _places(theirs, wide)
        if len(starts) > 1:
            return InOrder({}, f"the network occurs {len(starts)} times in the file")
        if starts:
            same = theirs[starts[0] : starts[0] + len(wide)]
            return _proved(wide, same, _counts(found, wanted) if not cut else {})
    return None


def _layers(shapes: Mapping[str, Shape]) -> list[_Layer]:
    groups: list[list[tuple[str, Shape]]] = [[]]
    for name, shape in shapes.items():
        if shape == () or name.endswith(_COUNTS):
            continue
        if len(shape) > 1 and groups[-1]:
            groups.append([])
        groups[-1].append((name, shape))
    return [_Layer(tuple(n for n, _ in g), tuple(s for _, s in g)) for g in groups if g]


def _places(theirs: Sequence[_Layer], ours: Sequence[_Layer]) -> list[int]:
    """Positions in the file's layers at which all of the network's layers begin."""
    left, right = [one.shapes for one in theirs], [one.shapes for one in ours]
    return [
        start
        for start in range(len(left) - len(right) + 1)
        if left[start : start + len(right)] == right
    ]


def _proved(ours: Sequence[_Layer], theirs: Sequence[_Layer], counts: Mapping[str, str]) -> InOrder:
    pairs = {
        want: have
        for our, their in zip(ours, theirs, strict=True)
        for want, have in zip(our.names, their.names, strict=True)
    }
    doubt = _other_role(ours, theirs) or _exchangeable(ours, theirs)
    return InOrder({} if doubt else pairs | dict(counts), doubt)


def _counts(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> dict[str, str]:
    """num_batches_tracked entries in order, if both sides have equally many."""
    have = [name for name in found if name.endswith(_COUNTS)]
    want = [name for name in wanted if name.endswith(_COUNTS)]
    return dict(zip(want, have, strict=True)) if len(have) == len(want) else {}


def _other_role(ours: Sequence[_Layer], theirs: Sequence[_Layer]) -> str:
    """Why roles contradict (a weight matched with a bias) or are ambiguous; "" if they do not."""
    for our, their in zip(ours, theirs, strict=True):
        free: list[str] = []
        for want, have, shape in zip(our.names, their.names, our.shapes, strict=True):
            role, other = _role(want, _PLAIN), _role(have, _ROLES)
            if role != other and (role or _role(have, _PLAIN)):
                return f"{have} has another role than {want}"
            if role is None and len(shape) == 1:
                free.append(have)
        if any(not _rises(a, b) for a, b in pairwise(free)):
            return f"{free[0]} and {free[1]} have the same shapes, and their order is ambiguous"
    return ""


def _role(name: str, roles: Mapping[str, str]) -> str | None:
    return roles.get(name.rpartition(".")[2])


def _exchangeable(ours: Sequence[_Layer], theirs: Sequence[_Layer]) -> str:
    """Why layers with equal shapes could be swapped; "" if their names show the order."""
    alike: defaultdict[tuple[Shape, ...], list[int]] = defaultdict(list)
    for place, layer in enumerate(ours):
        alike[layer.shapes].append(place)
    proved = _words(ours, theirs, [places[0] for places in alike.values() if len(places) == 1])
    for first, second in (pair for places in alike.values() for pair in pairwise(places)):
        before, after = theirs[first].names[0], theirs[second].names[0]
        if _rises(before, after):
            continue
        a, b = _where_they_differ(before, after)
        c, d = _where_they_differ(ours[first].names[0], ours[second].names[0])
        words = ((_word(a), _word(c)), (_word(b), _word(d)))
        told = all(one == other or (one, other) in proved for one, other in words)
        if _word(a) == _word(b) or not told:
            return f"{before} and {after} have the same shapes, and their order is ambiguous"
    return ""


def _rises(one: str, other: str) -> bool:
    """Whether the first differing parts of two names are numbered, the second one higher."""
    a, b = _where_they_differ(one, other)
    return _word(a) == _word(b) and _number(a) < _number(b)


def _words(
    ours: Sequence[_Layer], theirs: Sequence[_Layer], places: Sequence[int]
) -> set[tuple[str, str]]:
    """(file's word, network's word) pairs from layers with unique shapes."""
    return {
        (_word(part), _word(other))
        for place in places
        for part in theirs[place].names[0].split(".")[:-1]
        for other in ours[place].names[0].split(".")[:-1]
    }


def _where_they_differ(one: str, other: str) -> tuple[str, str]:
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            return a, b
    return one, other


def _word(part: str) -> str:
    return re.sub(r"[\d_]", "", part.lower())


def _number(part: str) -> int:
    digits = re.sub(r"\D", "", part)
    return int(digits) if digits else -1
