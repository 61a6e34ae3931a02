"""Seeded choices among images: subsets of the labels, and a part held out."""

import csv
import itertools
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.errors import DataError
from unfreeze.runtime import atomic
from unfreeze.runtime.tables import csv_text, read_csv
from unfreeze.text import has_halves

SMALLEST_CLASS = 5  # below this many training images in a class nothing is held out
_SUBSET, _HELD_OUT = 1, 2  # streams of one seed
_TOGETHER = 2**12  # lines that are written at once

Labels = npt.NDArray[np.integer]
Positions = npt.NDArray[np.int64]


class SplitRow(NamedTuple):
    """A line of split.csv."""

    path: str
    label: str
    split: str


def subset(
    labels: Labels,
    positions: npt.ArrayLike,
    *,
    per_class: int | None = None,
    fraction: float | None = None,
    limit: int | None = None,
    seed: int,
) -> Positions:
    """A stratified part of `positions`, ascending; what is asked for is applied in this order.

    For one seed a smaller subset lies inside every larger one of its kind. `per_class` takes all
    of a class that has fewer and needs labels (DataError); `fraction` keeps at least one image
    of each class; `limit` covers every class if it is large enough.
    """
    chosen = _ascending(positions, len(labels))
    if per_class is not None:
        if len(chosen) and (labels[chosen] < 0).any():
            raise DataError(
                "--labels-per-class needs labels, but some images have none.",
                "Use class folders or a CSV with labels, or use --limit.",
            )
        chosen = chosen[_ranks(labels, chosen, seed) < per_class]
    if fraction is not None:
        least = len(np.unique(labels[chosen]))
        chosen = _first(labels, chosen, max(round(fraction * len(chosen)), least), seed)
    if limit is not None:
        chosen = _first(labels, chosen, limit, seed)
    return np.sort(chosen)


def stratified(
    labels: Labels,
    positions: npt.ArrayLike,
    *,
    fraction: float,
    seed: int,
    groups: Sequence[Hashable] | None = None,
    together: Sequence[Sequence[int]] = (),
) -> tuple[Positions, Positions]:
    """Ascending (train, val): `fraction` of each class held out, shared by largest remainder.

    Train keeps at least one image of each class. Where the smallest class has fewer than
    SMALLEST_CLASS images, val is empty. `groups[position]` names what must stay on one side;
    whole groups are then held out as long as that brings the classes, and val as a whole, nearer to
    their share: val can be smaller than asked for, and empty, and half a group larger.
    `together`: positions that must stay on one side as well, few of them: each of these groups goes
    where its first position would.
    """
    chosen = _ascending(positions, len(labels))
    _, classes, counts = np.unique(labels[chosen], return_inverse=True, return_counts=True)
    if not len(chosen) or counts.min() < SMALLEST_CLASS:
        return chosen, chosen[:0]
    shares = np.minimum(_largest_remainder(counts, round(fraction * len(chosen))), counts - 1)
    keys = _keys(len(labels), seed, _HELD_OUT)[chosen]
    if groups is None:
        held = _rank_in_class(classes, keys) < shares[classes]
        _keep_together(held, classes, chosen, together)
    else:
        groups = joined(groups, together)
        names = [groups[position] for position in chosen]
        held = _whole_groups(classes, counts, shares, names, keys)
    return chosen[~held], chosen[held]


def joined(groups: Sequence[Hashable], together: Sequence[Sequence[int]]) -> Sequence[Hashable]:
    """The groups, those brought together that share positions of one group of `together`."""
    heads: dict[Hashable, Hashable] = {}

    def head(name: Hashable) -> Hashable:
        while (above := heads.get(name, name)) != name:
            name = above
        return name

    for positions in together:
        first, *others = (head(groups[position]) for position in positions)
        for name in others:
            if (other := head(name)) != first:
                heads[other] = first
    return groups if not heads else [head(name) for name in groups]


def write_split_csv(path: Path, rows: Iterable[SplitRow | tuple[str, str, str]]) -> None:
    """`path,label,split`, one line an image, whole or not at all."""
    parts, remaining = [_text([SplitRow._fields])], iter(rows)
    while some := list(itertools.islice(remaining, _TOGETHER)):
        parts.append(_text(some))
    atomic.write_text(path, "".join(parts))


def _text(rows: Sequence[tuple[str, ...]]) -> str:
    """The lines of some rows; where none has anything to quote, put together in half the time."""
    plain = "\n".join(map(",".join, rows)) + "\n"
    separators = sum(map(len, rows)) - len(rows), len(rows)
    ordinary = (plain.count(","), plain.count("\n")) == separators
    if ordinary and '"' not in plain and "\r" not in plain and not has_halves(plain):
        return plain
    return csv_text(rows)


def read_split_csv(path: Path) -> list[SplitRow]:
    """The lines of a split.csv; DataError where the file is missing or is something else."""
    try:
        rows = read_csv(path)
    except (OSError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read: {error}.", "Give the split.csv of a run."
        ) from error
    if not rows or tuple(rows[0]) != SplitRow._fields or any(len(row) != 3 for row in rows):
        raise DataError(
            f"{path} is not a split file: its columns must be path, label and split.",
            "Give the split.csv of a run.",
        )
    return [SplitRow(*row) for row in rows[1:]]


def _ascending(positions: npt.ArrayLike, count: int) -> Positions:
    """Each position once, in order: numpy's `unique` takes thirty times as long."""
    taken = np.zeros(count, np.bool_)
    taken[np.asarray(positions, np.int64)] = True
    return np.flatnonzero(taken)


def _keys(count: int, seed: int, stream: int) -> npt.NDArray[np.uint64]:
    # raw output of a bit generator is the part of numpy that is promised never to change
    raw = np.random.PCG64(np.random.SeedSequence([seed, stream])).random_raw(count)
    return np.asarray(raw, np.uint64)


def _rank_in_class(
    classes: npt.NDArray[np.integer], keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int64]:
    """Each image's place 0, 1, ... among those of its class, by key."""
    order = np.lexsort((keys, classes))
    ordered = classes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(order)])
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    return ranks


def _ranks(labels: Labels, positions: Positions, seed: int) -> npt.NDArray[np.int64]:
    if not len(positions):
        return np.zeros(0, np.int64)
    return _rank_in_class(labels[positions], _keys(len(labels), seed, _SUBSET)[positions])


def _first(labels: Labels, positions: Positions, count: int, seed: int) -> Positions:
    """The first `count` in an order whose every beginning is stratified (so they nest).

    The r-th of n images of a class stands at (r + 1/2) / n: Webster's apportionment, which
    never takes a seat back when the house grows. The first of each class stands before all.
    """
    if not len(positions):
        return positions
    ranks = _ranks(labels, positions, seed)
    _, classes, counts = np.unique(labels[positions], return_inverse=True, return_counts=True)
    places = np.where(ranks == 0, 0.0, (ranks + 0.5) / counts[classes])
    keys = _keys(len(labels), seed, _SUBSET)[positions]
    if count < len(places):  # only these can be among them: few of a million are put in order
        near = np.flatnonzero(places <= np.partition(places, count)[count])
        positions, places, keys = positions[near], places[near], keys[near]
    first: Positions = positions[np.lexsort((keys, places))[:count]]
    return first


def _largest_remainder(counts: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """`total` shared in proportion to `counts`; ties go to the earlier class."""
    quotas = total * counts / counts.sum()
    shares: npt.NDArray[np.int64] = np.floor(quotas).astype(np.int64)
    by_remainder = np.argsort(shares - quotas, kind="stable")
    shares[by_remainder[: total - shares.sum()]] += 1
    return shares


def _whole_groups(
    classes: npt.NDArray[np.integer],
    counts: npt.NDArray[np.int64],
    shares: npt.NDArray[np.int64],
    names: list[Hashable],
    keys: npt.NDArray[np.uint64],
) -> npt.NDArray[np.bool_]:
    """Which images are held out: groups in seeded order, while they bring classes nearer."""
    members: dict[Hashable, list[int]] = {}
    for place in np.argsort(keys, kind="stable"):
        members.setdefault(names[place], []).append(int(place))
    held = np.zeros(len(classes), np.bool_)
    open_seats, left = shares.astype(np.int64), counts.astype(np.int64)
    for group in members.values():
        touched, added = np.unique(classes[group], return_counts=True)
        before = np.abs(open_seats[touched]).sum()
        after = np.abs(open_seats[touched] - added).sum()
        # nearer in all, too: large groups of one class would hold out twice as much
        nearer = after < before and len(group) <= 2 * open_seats.sum()
        if nearer and (left[touched] > added).all():
            open_seats[touched] -= added
            left[touched] -= added
            held[group] = True
    return held


def _keep_together(
    held: npt.NDArray[np.bool_],
    classes: npt.NDArray[np.integer],
    chosen: Positions,
    together: Sequence[Sequence[int]],
) -> None:
    """Brings each group to the side of its first position; train keeps one image of each class."""
    place = {position: number for number, position in enumerate(chosen.tolist())}
    left = np.bincount(classes[~held], minlength=int(classes.max()) + 1)
    for positions in together:
        group = [place[position] for position in positions if position in place]
        if len(set(held[group].tolist())) < 2:
            continue
        left += np.bincount(classes[group][held[group]], minlength=len(left))
        leaving = np.bincount(classes[group], minlength=len(left))
        held[group] = bool(held[group[0]]) and bool((leaving < left)[leaving > 0].all())
        left -= leaving * held[group[0]]
