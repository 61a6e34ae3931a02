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
MIN_LAYERS = 4  # layers; a shorter sequence is not conclusive


@dataclass(frozen=True)
class _Layer:
    """A matrix or kernel with the vectors that follow it: names and shapes in order."""

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class OrderMatch:
    """`pairs`: network name -> file name; `doubt`: why the match is ambiguous, "" if it is not."""

    pairs: dict[str, str]
    doubt: str = ""


def match_by_order(
    file_shapes: Mapping[str, Shape], model_shapes: Mapping[str, Shape]
) -> OrderMatch | None:
    """The match by the order of shapes; None if the two sequences differ.

    The network's layers must be consecutive in the file; the last one (a head) may have another
    number of classes, or be absent. num_batches_tracked is ignored in the order.
    """
    model_layers, file_layers = _layers(model_shapes), _layers(file_shapes)
    for layers, dropped in ((model_layers, 0), (model_layers[:-1], 1)):
        if len(layers) < MIN_LAYERS:
            return None
        starts = _positions_of(file_layers, layers)
        if len(starts) > 1:
            return OrderMatch({}, f"the network occurs {len(starts)} times in the file")
        if starts:
            same = file_layers[starts[0] : starts[0] + len(layers)]
            return _conclude(
                layers, same, _batch_counts(file_shapes, model_shapes) if not dropped else {}
            )
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


def _positions_of(file_layers: Sequence[_Layer], model_layers: Sequence[_Layer]) -> list[int]:
    """Positions in the file's layers at which all of the network's layers begin."""
    file_sequence, model_sequence = (
        [layer.shapes for layer in file_layers],
        [layer.shapes for layer in model_layers],
    )
    return [
        start
        for start in range(len(file_sequence) - len(model_sequence) + 1)
        if file_sequence[start : start + len(model_sequence)] == model_sequence
    ]


def _conclude(
    model_layers: Sequence[_Layer], file_layers: Sequence[_Layer], counts: Mapping[str, str]
) -> OrderMatch:
    pairs = {
        name: file_name
        for model_layer, file_layer in zip(model_layers, file_layers, strict=True)
        for name, file_name in zip(model_layer.names, file_layer.names, strict=True)
    }
    doubt = _role_conflict(model_layers, file_layers) or _ambiguous_order(model_layers, file_layers)
    return OrderMatch({} if doubt else pairs | dict(counts), doubt)


def _batch_counts(
    file_shapes: Mapping[str, Shape], model_shapes: Mapping[str, Shape]
) -> dict[str, str]:
    """num_batches_tracked entries in order, if both sides have equally many."""
    file_names = [name for name in file_shapes if name.endswith(_COUNTS)]
    model_names = [name for name in model_shapes if name.endswith(_COUNTS)]
    return (
        dict(zip(model_names, file_names, strict=True))
        if len(file_names) == len(model_names)
        else {}
    )


def _role_conflict(model_layers: Sequence[_Layer], file_layers: Sequence[_Layer]) -> str:
    """Why roles contradict (a weight matched with a bias) or are ambiguous; "" if they do not."""
    for model_layer, file_layer in zip(model_layers, file_layers, strict=True):
        ambiguous: list[str] = []
        for name, file_name, shape in zip(
            model_layer.names, file_layer.names, model_layer.shapes, strict=True
        ):
            role, other = _role(name, _PLAIN), _role(file_name, _ROLES)
            if role != other and (role or _role(file_name, _PLAIN)):
                return f"{file_name} has another role than {name}"
            if role is None and len(shape) == 1:
                ambiguous.append(file_name)
        if any(not _is_numbered_up(a, b) for a, b in pairwise(ambiguous)):
            first, second = ambiguous[:2]
            return f"{first} and {second} have the same shapes, and their order is ambiguous"
    return ""


def _role(name: str, roles: Mapping[str, str]) -> str | None:
    return roles.get(name.rpartition(".")[2])


def _ambiguous_order(model_layers: Sequence[_Layer], file_layers: Sequence[_Layer]) -> str:
    """Why layers with equal shapes could be swapped; "" if their names show the order."""
    same_shapes: defaultdict[tuple[Shape, ...], list[int]] = defaultdict(list)
    for position, layer in enumerate(model_layers):
        same_shapes[layer.shapes].append(position)
    proved = _corresponding_words(
        model_layers,
        file_layers,
        [positions[0] for positions in same_shapes.values() if len(positions) == 1],
    )
    for first, second in (
        pair for positions in same_shapes.values() for pair in pairwise(positions)
    ):
        before, after = file_layers[first].names[0], file_layers[second].names[0]
        if _is_numbered_up(before, after):
            continue
        a, b = _first_difference(before, after)
        c, d = _first_difference(model_layers[first].names[0], model_layers[second].names[0])
        words = ((_word(a), _word(c)), (_word(b), _word(d)))
        consistent = all(one == other or (one, other) in proved for one, other in words)
        if _word(a) == _word(b) or not consistent:
            return f"{before} and {after} have the same shapes, and their order is ambiguous"
    return ""


def _is_numbered_up(name: str, other: str) -> bool:
    """Whether the first differing parts of two names are numbered, the second one higher."""
    a, b = _first_difference(name, other)
    return _word(a) == _word(b) and _number(a) < _number(b)


def _corresponding_words(
    model_layers: Sequence[_Layer], file_layers: Sequence[_Layer], positions: Sequence[int]
) -> set[tuple[str, str]]:
    """(file's word, network's word) pairs from layers with unique shapes."""
    return {
        (_word(part), _word(other))
        for position in positions
        for part in file_layers[position].names[0].split(".")[:-1]
        for other in model_layers[position].names[0].split(".")[:-1]
    }


def _first_difference(name: str, other: str) -> tuple[str, str]:
    for a, b in zip(name.split("."), other.split("."), strict=False):
        if a != b:
            return a, b
    return name, other


def _word(part: str) -> str:
    return re.sub(r"[\d_]", "", part.lower())


def _number(part: str) -> int:
    digits = re.sub(r"\D", "", part)
    return int(digits) if digits else -1
