"""Matches renamed parameters: children by number, or one part of the name replaced.

`nn.Sequential(*list(resnet.children())[:-1])`, a common way to get a backbone, has
`4.0.conv1.weight` for `layer1.0.conv1.weight`; other ResNets have `shortcut` for `downsample`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

Shape = tuple[int, ...]

# How many prefixes with numbered children are tried, those with the most elements first.
TRIED = 4


def numbered(
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
    for prefix in sorted(groups, key=lambda candidate: -elements[candidate])[:TRIED]:
        numbers = sorted({number for number, _, _ in groups[prefix]})
        if len(numbers) <= len(children):
            child = dict(zip(numbers, children, strict=False))
            yield prefix, {f"{child[number]}.{rest}": name for number, rest, name in groups[prefix]}


def renamed(
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
