"""Seeded, stratified subsets and train/validation splits, and split.csv."""

import csv
import itertools
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.errors import DataError
from unfreeze.runtime import atomic
from unfreeze.runtime.text_layout import csv_text, read_csv
from unfreeze.text import has_surrogates

SMALLEST_CLASS = 5  # training images of the smallest class required for a validation split
_SUBSET, _HELD_OUT = 1, 2  # separate random streams of a seed
_BATCH = 2**12  # lines per write

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
    """A stratified subset of `positions`, ascending; the arguments are applied in order.

    With the same seed smaller subsets are contained in larger ones. `per_class` takes all images of
    smaller classes and needs labels (DataError); `fraction` keeps at least one image per class;
    `limit` covers every class if it is large enough.
    """
    selected = _ascending(positions, len(labels))
    if per_class is not None:
        if len(selected) and (labels[selected] < 0).any():
            raise DataError(
                "--labels-per-class needs labels, but some images have none.",
                "Use class folders or a CSV with labels, or use --limit.",
            )
        selected = selected[_ranks(labels, selected, seed) < per_class]
    if fraction is not None:
        least = len(np.unique(labels[selected]))
        selected = _first(labels, selected, max(round(fraction * len(selected)), least), seed)
    if limit is not None:
        selected = _first(labels, selected, limit, seed)
    return np.sort(selected)


def stratified_split(
    labels: Labels,
    positions: npt.ArrayLike,
    *,
    fraction: float,
    seed: int,
    groups: Sequence[Hashable] | None = None,
    together: Sequence[Sequence[int]] = (),
) -> tuple[Positions, Positions]:
    """A stratified split into ascending (train, val), with `fraction` of each class in val.

    Shares are rounded by largest remainder. Train keeps at least one image of each class. Val is
    empty if the smallest class has fewer than SMALLEST_CLASS images. `groups[position]`: images of
    one group are never split. Groups are added to val while that brings the classes, and val in
    total, closer to their shares, so val can be smaller than requested, empty, or half a group
    larger. `together`: a few more groups of positions to keep together, each on the side of its
    first position.
    """
    selected = _ascending(positions, len(labels))
    _, classes, counts = np.unique(labels[selected], return_inverse=True, return_counts=True)
    if not len(selected) or counts.min() < SMALLEST_CLASS:
        return selected, selected[:0]
    shares = np.minimum(_largest_remainder(counts, round(fraction * len(selected))), counts - 1)
    keys = _keys(len(labels), seed, _HELD_OUT)[selected]
    if groups is None:
        held_out = _rank_in_class(classes, keys) < shares[classes]
        _keep_together(held_out, classes, selected, together)
    else:
        groups = merge_groups(groups, together)
        names = [groups[position] for position in selected]
        held_out = _hold_out_groups(classes, counts, shares, names, keys)
    return selected[~held_out], selected[held_out]


def merge_groups(
    groups: Sequence[Hashable], together: Sequence[Sequence[int]]
) -> Sequence[Hashable]:
    """`groups`, merged so that each group of positions in `together` has one name."""
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
    """Write `path,label,split`, one line per image, atomically."""
    parts, remaining = [_csv_lines([SplitRow._fields])], iter(rows)
    while batch := list(itertools.islice(remaining, _BATCH)):
        parts.append(_csv_lines(batch))
    atomic.write_text(path, "".join(parts))


def _csv_lines(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as CSV text, with a fast path for rows that need no quoting."""
    plain = "\n".join(map(",".join, rows)) + "\n"
    separators = sum(map(len, rows)) - len(rows), len(rows)
    ordinary = (plain.count(","), plain.count("\n")) == separators
    if ordinary and '"' not in plain and "\r" not in plain and not has_surrogates(plain):
        return plain
    return csv_text(rows)


def read_split_csv(path: Path) -> list[SplitRow]:
    """The lines of a split.csv; DataError if the file is missing or invalid."""
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
    """Unique positions in ascending order, 30 times as fast as `np.unique`."""
    mask = np.zeros(count, np.bool_)
    mask[np.asarray(positions, np.int64)] = True
    return np.flatnonzero(mask)


def _keys(count: int, seed: int, stream: int) -> npt.NDArray[np.uint64]:
    # numpy guarantees that the raw output of a bit generator never changes
    raw = np.random.PCG64(np.random.SeedSequence([seed, stream])).random_raw(count)
    return np.asarray(raw, np.uint64)


def _rank_in_class(
    classes: npt.NDArray[np.integer], keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int64]:
    """Rank 0, 1, ... of each image within its class, by key."""
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
    """The first `count` positions of an order of which every prefix is stratified.

    The r-th of n images of a class gets the sort key (r + 1/2) / n (Webster apportionment), so that
    subsets are nested. The first image of each class comes before all others.
    """
    if not len(positions):
        return positions
    ranks = _ranks(labels, positions, seed)
    _, classes, counts = np.unique(labels[positions], return_inverse=True, return_counts=True)
    sort_keys = np.where(ranks == 0, 0.0, (ranks + 0.5) / counts[classes])
    keys = _keys(len(labels), seed, _SUBSET)[positions]
    if count < len(sort_keys):  # sorts only the candidates, not a million images
        candidates = np.flatnonzero(sort_keys <= np.partition(sort_keys, count)[count])
        positions, sort_keys, keys = positions[candidates], sort_keys[candidates], keys[candidates]
    first: Positions = positions[np.lexsort((keys, sort_keys))[:count]]
    return first


def _largest_remainder(counts: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """`total` divided in proportion to `counts`; ties go to the earlier class."""
    quotas = total * counts / counts.sum()
    shares: npt.NDArray[np.int64] = np.floor(quotas).astype(np.int64)
    by_remainder = np.argsort(shares - quotas, kind="stable")
    shares[by_remainder[: total - shares.sum()]] += 1
    return shares


def _hold_out_groups(
    classes: npt.NDArray[np.integer],
    counts: npt.NDArray[np.int64],
    shares: npt.NDArray[np.int64],
    names: list[Hashable],
    keys: npt.NDArray[np.uint64],
) -> npt.NDArray[np.bool_]:
    """Mask of held-out images: groups in random order that bring the classes closer to `shares`."""
    members: dict[Hashable, list[int]] = {}
    for index in np.argsort(keys, kind="stable"):
        members.setdefault(names[index], []).append(int(index))
    held_out = np.zeros(len(classes), np.bool_)
    missing, in_train = shares.astype(np.int64), counts.astype(np.int64)
    for group in members.values():
        group_classes, added = np.unique(classes[group], return_counts=True)
        before = np.abs(missing[group_classes]).sum()
        after = np.abs(missing[group_classes] - added).sum()
        # also closer in total: large groups of one class would hold out twice as much
        closer = after < before and len(group) <= 2 * missing.sum()
        if closer and (in_train[group_classes] > added).all():
            missing[group_classes] -= added
            in_train[group_classes] -= added
            held_out[group] = True
    return held_out


def _keep_together(
    held_out: npt.NDArray[np.bool_],
    classes: npt.NDArray[np.integer],
    selected: Positions,
    together: Sequence[Sequence[int]],
) -> None:
    """Moves each group to the side of its first position; train keeps an image of each class."""
    index = {position: i for i, position in enumerate(selected.tolist())}
    in_train = np.bincount(classes[~held_out], minlength=int(classes.max()) + 1)
    for positions in together:
        group = [index[position] for position in positions if position in index]
        if len(set(held_out[group].tolist())) < 2:
            continue
        in_train += np.bincount(classes[group][held_out[group]], minlength=len(in_train))
        leaving = np.bincount(classes[group], minlength=len(in_train))
        held_out[group] = bool(held_out[group[0]]) and bool((leaving < in_train)[leaving > 0].all())
        in_train -= leaving * held_out[group[0]]
