"""Pictures that are the same, to the byte or to the eye."""

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from unfreeze.data.examine import THUMB

FAR = 6  # bits of 64 in which near-duplicates may differ
ALIKE = 0.985  # correlation of their grey thumbnails from which they are near-duplicates
_BLOCK = 4_000  # pairs whose thumbnails are compared at once
_BYTES = 8  # of a look; where no more than FAR bits differ, two bytes at least are the same

Groups = list[list[int]]
Places = npt.NDArray[np.int64]


def exact(digests: npt.NDArray[np.void]) -> Groups:
    """Places whose 16 bytes `[N]` are the same, in groups of two and more, by their first place."""
    _, inverse = np.unique(digests, return_inverse=True)
    return _gathered(inverse)


def near(looks: npt.NDArray[np.uint64], thumbs: npt.NDArray[np.uint8]) -> Groups:
    """Places that look alike, in groups by their first place.

    `looks` `[N]` are the 64 bits of `Examination.look`, `thumbs` `[N, 256]` uint8. Candidates share
    two of eight bytes, so that nearly all pairs are never looked at; of those at most FAR bits
    differ, and thumbnails correlate by ALIKE at least. Each picture of one group is close to some
    other of it.
    """
    parents = np.arange(len(looks))
    parts = np.ascontiguousarray(looks).view(np.uint8).reshape(-1, _BYTES).astype(np.uint16)
    for a, b in itertools.combinations(range(_BYTES), 2):
        keys = parts[:, a] << 8 | parts[:, b]
        order = np.argsort(keys, kind="stable")
        ordered = looks[order]
        for one, two in _neighbours(keys[order]):
            close = np.bitwise_count(ordered[one] ^ ordered[two]) <= FAR
            _join(order[one[close]], order[two[close]], thumbs, parents)
    return _gathered(parents)


def _neighbours(keys: npt.NDArray[np.generic]) -> Iterator[tuple[Places, Places]]:
    """All pairs of places with the same key, of sorted `keys`: those side by side first."""
    first, apart = np.arange(len(keys)), 1
    while True:
        first = first[: np.searchsorted(first, len(keys) - apart)]
        first = first[keys[first] == keys[first + apart]]
        if not len(first):
            return
        yield first, first + apart
        apart += 1


def _unit(thumbs: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Thumbnails without their mean, of length 1: products are correlations."""
    rows = thumbs.reshape(len(thumbs), THUMB * THUMB).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return rows


def _join(one: Places, two: Places, thumbs: npt.NDArray[np.uint8], parents: Places) -> None:
    """Bring together the pairs that look alike; every parent is a root, before and after."""
    apart = parents[one] != parents[two]  # what is together already costs nothing more
    one, two = one[apart], two[apart]
    for start in range(0, len(one), _BLOCK):
        some = slice(start, start + _BLOCK)
        pairs = _unit(thumbs[one[some]]), _unit(thumbs[two[some]])
        alike = np.einsum("ij,ij->i", *pairs) >= ALIKE
        for a, b in zip(one[some][alike].tolist(), two[some][alike].tolist(), strict=True):
            _union(parents, a, b)
    while len(one) and (parents != (roots := parents[parents])).any():
        parents[:] = roots


def _root(parents: Places, place: int) -> int:
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = int(parents[place])
    return place


def _union(parents: Places, one: int, two: int) -> None:
    first, second = sorted((_root(parents, one), _root(parents, two)))
    parents[second] = first


def _gathered(keys: npt.NDArray[np.generic]) -> Groups:
    """Places with the same key, where there are several, in order of their first place."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.r_[keys[order][1:] != keys[order][:-1], True]) + 1
    parts = np.split(order, ends[:-1])
    return sorted(sorted(part.tolist()) for part in parts if len(part) > 1)
