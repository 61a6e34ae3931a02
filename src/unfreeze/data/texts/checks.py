"""Checks of texts before training: empty ones are left out, duplicates are found."""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from unfreeze.data.index.index import Index
from unfreeze.data.texts.source import TextSource, normalized
from unfreeze.data.validate.duplicates import Groups
from unfreeze.data.validate.precheck import DatasetCheck, ImageProblem
from unfreeze.errors import DataError
from unfreeze.runtime.console import Console, pluralised

SHINGLE = 5  # characters of a piece of text
BANDS, ROWS = 8, 4  # of the MinHash: pairs whose pieces agree by 60 % are found with 68 %
SIMILAR = 0.8  # share of equal pieces (Jaccard) of near-duplicates
SHORT = 20  # characters below which texts are compared as a whole only
LARGEST_BUCKET = 50  # texts; in larger ones only neighbours are compared
NAMED = 3  # duplicates shown by name


def texts_of(index: Index) -> TextSource:
    """The source of an index of texts."""
    if not isinstance(index.source, TextSource):
        raise TypeError(f"{index.source.where} is no source of texts")
    return index.source


def check_texts(index: Index) -> DatasetCheck:
    """Finds empty texts; DataError if all are empty."""
    source = texts_of(index)
    empty = np.array([not source.read(row).strip() for row in index.rows.tolist()], np.bool_)
    if empty.all():
        raise DataError(
            f"All {len(index):,} texts of {source.where} are empty.",
            "Name the column of texts with --text-column.",
        )
    none = np.zeros(len(index), np.int32)
    return DatasetCheck(
        index=index,
        usable=np.flatnonzero(~empty),
        problems=[
            ImageProblem(index.paths[position], "empty", "the text is empty", True)
            for position in np.flatnonzero(empty).tolist()
        ],
        heights=none,
        widths=none,
        mode="full",
        decoded=len(index),
        known=0,
        seconds=0.0,
        store=None,
        resize_to=None,
    )


def similar_texts(index: Index, usable: npt.NDArray[np.int64]) -> Groups:
    """Groups of duplicates and near-duplicates among `usable` positions, two or more each.

    Texts are equal if they differ in case, punctuation and spaces only, and similar if at least
    SIMILAR of their pieces of SHINGLE characters are the same (MinHash, Broder 1997).
    """
    source, parent = texts_of(index), {int(p): int(p) for p in usable}

    def root(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    def union(first: int, second: int) -> None:
        first, second = sorted((root(first), root(second)))
        parent[second] = first

    plain = {int(p): _plain(source, int(index.rows[p])) for p in usable}
    first_of: dict[str, int] = {}
    for position, text in plain.items():
        union(first_of.setdefault(text, position), position)
    distinct = {p: text for text, p in first_of.items() if len(text) >= SHORT}
    for first, second in _candidates(distinct):
        if root(first) != root(second) and _jaccard(plain[first], plain[second]) >= SIMILAR:
            union(first, second)
    groups: dict[int, list[int]] = defaultdict(list)
    for position in plain:
        groups[root(position)].append(position)
    return [group for group in groups.values() if len(group) > 1]


def _plain(source: TextSource, row: int) -> str:
    return normalized(source.texts[row], source.pairs[row] if source.pairs else None)


def _pieces(text: str) -> set[str]:
    return {text[start : start + SHINGLE] for start in range(len(text) - SHINGLE + 1)}


def _jaccard(first: str, second: str) -> float:
    one, other = _pieces(first), _pieces(second)
    return len(one & other) / max(1, len(one | other))


def _candidates(texts: dict[int, str]) -> Iterator[tuple[int, int]]:
    """Pairs of positions that share a band of their MinHash signatures."""
    draw = np.random.default_rng(0)
    count = BANDS * ROWS
    # odd factors and shifts of 64-bit hashes: cheap and well mixed in the upper bits
    factors = draw.integers(1, 2**63, count, np.uint64) | np.uint64(1)
    buckets: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(BANDS)]
    for position, text in texts.items():
        signature = _signature(text, factors)
        for band, bucket in enumerate(buckets):
            bucket[signature[band * ROWS : (band + 1) * ROWS].tobytes()].append(position)
    for bucket in buckets:
        for members in bucket.values():
            if len(members) > LARGEST_BUCKET:
                yield from itertools.pairwise(members)
                continue
            for number, first in enumerate(members):
                yield from ((first, second) for second in members[number + 1 :])


def _signature(text: str, factors: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The smallest hash of the text's pieces under each factor."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, SHINGLE)
    with np.errstate(over="ignore"):
        hashes = np.zeros(len(windows), np.uint64)
        for column in range(SHINGLE):
            hashes = hashes * np.uint64(1_000_003) + windows[:, column]
        hashes ^= hashes >> np.uint64(29)
        mixed = hashes[None, :] * factors[:, None]
        mixed ^= mixed >> np.uint64(32)
        smallest: npt.NDArray[np.uint64] = (mixed * factors[:, None]).min(axis=1)
    return smallest


def say_duplicates(index: Index, groups: Groups, console: Console) -> None:
    """Name duplicates: how many, in which splits, and those with different labels."""
    if not groups:
        return
    copies = sum(len(group) - 1 for group in groups)
    first = groups[0]
    console.say(
        f"{pluralised(copies, 'text is a duplicate', 'texts are duplicates')} or nearly so, as "
        f"{index.paths[first[1]]} of {index.paths[first[0]]}; they stay in one split."
    )
    across = [group for group in groups if len({int(index.splits[p]) for p in group}) > 1]
    if across:
        names = ", ".join(_example(index, group) for group in across[:NAMED])
        console.warn(
            f"{pluralised(len(across), 'text is', 'texts are')} in several splits of the data, "
            f"so their scores are too good: {names}."
        )
    differ = [group for group in groups if len({int(index.labels[p]) for p in group}) > 1]
    if differ:
        names = ", ".join(_example(index, group) for group in differ[:NAMED])
        console.warn(
            f"{pluralised(len(differ), 'text has', 'texts have')} duplicates with another label: "
            f"{names}."
        )


def _example(index: Index, group: Sequence[int]) -> str:
    """Two members of a group that differ in split or label, if any do."""
    first = group[0]
    other = next(
        (p for p in group[1:] if (index.splits[p], index.labels[p])
         != (index.splits[first], index.labels[first])),
        group[1],
    )  # fmt: skip
    return f"{index.paths[first]} and {index.paths[other]}"


def texts_digest(source: TextSource, rows: Sequence[int]) -> str:
    """Hex digest of the exact texts of some rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(source.read(row) + b"\0")
    return digest.hexdigest()
