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
    found: Mapping[str, Shape], wanted: Iterable[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """(prefix, network name -> file name) for each prefix with numbered children.

    Children with parameters are matched in order: numbers have gaps at children without any (a
    ReLU), and libraries differ in where these are.
    """
    children = list(dict.fromkeys(name.partition(".")[0] for name in wanted))
    groups: defaultdict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for name in found:
        parts = name.split(".")
        for place in range(len(parts) - 1):
            if parts[place].isdecimal():
                prefix = "".join(f"{part}." for part in parts[:place])
                rest = ".".join(parts[place + 1 :])
                groups[prefix].append((int(parts[place]), rest, name))
    held = {
        prefix: sum(math.prod(found[name]) for _, _, name in group)
        for prefix, group in groups.items()
    }
    for prefix in sorted(groups, key=lambda one: -held[one])[:TRIED]:
        numbers = sorted({number for number, _, _ in groups[prefix]})
        if len(numbers) <= len(children):
            child = dict(zip(numbers, children, strict=False))
            yield prefix, {f"{child[number]}.{rest}": name for number, rest, name in groups[prefix]}


def renamed(
    left: Mapping[str, Shape], lacking: Mapping[str, Shape], known: set[str]
) -> dict[str, str]:
    """Missing name -> unmatched name with an equal shape that differs in one inner part.

    `left`: unmatched shapes of the file, without prefix; `lacking`: missing shapes of the network;
    `known`: the parts of all the network's names. The differing parts must be words that only
    their side has, and always correspond to each other.
    """
    foreign = {part for name in left for part in name.split(".")}
    places: defaultdict[object, list[tuple[str, str]]] = defaultdict(list)
    for name, shape in lacking.items():
        for frame, word in _frames(name):
            if word not in foreign:
                places[frame, shape].append((word, name))
    fits = [
        (theirs, *places[frame, shape][0], name)
        for name, shape in left.items()
        for frame, theirs in _frames(name)
        if theirs not in known and len(places.get((frame, shape), ())) == 1
    ]
    words: dict[str, str] = {}
    for (theirs, ours), _ in Counter((fit[0], fit[1]) for fit in fits).most_common():
        if theirs not in words and ours not in words.values():
            words[theirs] = ours
    return {want: name for theirs, ours, want, name in fits if words.get(theirs) == ours}


def _frames(name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(name with one inner part as `*`, that part), for each part but the first and last."""
    parts = name.split(".")
    for place in range(1, len(parts) - 1):
        if not parts[place].isdecimal():
            yield (*parts[:place], "*", *parts[place + 1 :]), parts[place]
