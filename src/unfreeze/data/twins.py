"""Pictures that are the same, to the byte or to the eye."""

import itertools

import numpy as np
import numpy.typing as npt

from unfreeze.data.examine import THUMB

FAR = 6  # bits of 64 in which near-duplicates may differ
ALIKE = 0.985  # correlation of their grey thumbnails from which they are near-duplicates
_BLOCK = 4_000  # pictures of one bucket that are compared at once
_BANDS = FAR + 1  # of pictures that differ in FAR bits one band at least is the same

Groups = list[list[int]]


def exact(digests: npt.NDArray[np.void]) -> Groups:
    """Places whose 16 bytes `[N]` are the same, in groups of two and more, by their first place."""
    _, inverse = np.unique(digests, return_inverse=True)
    return _gathered(inverse)


def near(looks: npt.NDArray[np.uint64], thumbs: npt.NDArray[np.uint8]) -> Groups:
    """Places that look alike, in groups by their first place.

    `looks` `[N]` are the 64 bits of `Examination.look`, `thumbs` `[N, 256]` uint8. Candidates share
    one of seven bands of bits, so that nearly all pairs are never looked at; of those at most FAR
    bits differ, and thumbnails correlate by ALIKE at least. Each picture of one group is close to
    some other of it.
    """
    parents = np.arange(len(looks))
    bounds = np.linspace(0, 64, _BANDS + 1).astype(int)
    unit = _unit(thumbs)
    for low, high in itertools.pairwise(bounds):
        band = (looks >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        for bucket in _gathered(band):
            _join(np.array(bucket), looks, unit, parents)
    return _gathered(np.array([_root(parents, place) for place in range(len(parents))]))


def _unit(thumbs: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Thumbnails without their mean, of length 1: products are correlations."""
    rows = thumbs.reshape(len(thumbs), THUMB * THUMB).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return rows


def _join(
    bucket: npt.NDArray[np.int64],
    looks: npt.NDArray[np.uint64],
    unit: npt.NDArray[np.float32],
    parents: npt.NDArray[np.int64],
) -> None:
    """Bring together the pictures of a bucket that look alike."""
    for start in range(0, len(bucket), _BLOCK):
        rows = bucket[start : start + _BLOCK]
        for other in range(start, len(bucket), _BLOCK):
            columns = bucket[other : other + _BLOCK]
            apart = np.bitwise_count(looks[rows][:, None] ^ looks[columns][None, :])
            for a, b in np.argwhere(apart <= FAR):
                one, two = int(rows[a]), int(columns[b])
                if one < two and float(unit[one] @ unit[two]) >= ALIKE:
                    _union(parents, one, two)


def _root(parents: npt.NDArray[np.int64], place: int) -> int:
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = int(parents[place])
    return place


def _union(parents: npt.NDArray[np.int64], one: int, two: int) -> None:
    first, second = sorted((_root(parents, one), _root(parents, two)))
    parents[second] = first


def _gathered(keys: npt.NDArray[np.generic]) -> Groups:
    """Places with the same key, where there are several, in order of their first place."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.r_[keys[order][1:] != keys[order][:-1], True]) + 1
    parts = np.split(order, ends[:-1])
    return sorted(sorted(part.tolist()) for part in parts if len(part) > 1)
