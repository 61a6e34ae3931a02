"""Images that are the same, to the byte or to the eye: their signatures, and the rule for a pair.

`scan`, `finetune` and `evaluate` all compare images by this rule and no other.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

FAR = 6  # bits of 64 in which the hashes of near-duplicates may differ
ALIKE = 0.985  # correlation of their grey thumbnails from which they are near-duplicates
THUMB = 16  # side of the thumbnail
SAMPLED = 256  # pixels of the shorter side; of a larger image every n-th pixel is looked at
_WAVES = 32  # side of the grey image whose low frequencies are hashed
_MIDDLE = 31  # place of the median among the 63 that follow the mean
_FLAT = 4.0  # standard deviation of grey below which an image looks like any other
_BLOCK = 4_000  # pairs whose thumbnails are compared at once
_BYTES = 8  # of a hash; where no more than FAR bits differ, two bytes at least are the same

Groups = list[list[int]]
Positions = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
# a signature in an array; one that is not `known` is of an image that was not looked at
SIGNATURE = np.dtype(
    [("known", "?"), ("flat", "?"), ("hash", "<u8"), ("thumb", "u1", (THUMB * THUMB,))]
)
Signatures = npt.NDArray[np.void]


class Signature(NamedTuple):
    """What near-duplicates share: `hash`, 64 bits of which they differ in a few, and `thumb`.

    `thumb` is grey uint8 `[THUMB * THUMB]`; None for a flat image, which looks like any other.
    """

    hash: int
    thumb: Pixels | None

    def into(self, table: Signatures, place: int) -> None:
        """Writes it into an array of SIGNATURE."""
        entry = table[place]
        entry["known"], entry["flat"], entry["hash"] = True, self.thumb is None, self.hash
        if self.thumb is not None:
            entry["thumb"] = self.thumb


def signature(pixels: Pixels) -> Signature:
    """The signature of an image, uint8 `[H, W, 3]` or grey `[H, W]`; 0.3 ms.

    The perceptual hash: signs of the DCT's first 8x8 coefficients about their median.
    """
    step = max(1, min(pixels.shape[:2]) // SAMPLED)
    if step > 1:
        pixels = np.ascontiguousarray(pixels[step // 2 :: step, step // 2 :: step])
    whole = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(whole, (_WAVES, _WAVES), interpolation=cv2.INTER_AREA)
    if cv2.meanStdDev(grey)[1][0, 0] < _FLAT:
        return Signature(0, None)
    waves = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()
    bits = waves > np.partition(waves[1:], _MIDDLE)[_MIDDLE]
    thumb = cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    found = int.from_bytes(np.packbits(bits).tobytes(), "big")
    return Signature(found, np.asarray(thumb, np.uint8).ravel())


def comparable(table: Signatures) -> npt.NDArray[np.bool_]:
    """Which signatures can be compared: known ones of images that are not flat."""
    found: npt.NDArray[np.bool_] = table["known"] & ~table["flat"]
    return found


def exact(digests: npt.NDArray[np.generic]) -> Groups:
    """Places whose digests `[N]` are the same, in groups of two and more, by their first place."""
    _, inverse = np.unique(digests, return_inverse=True)
    return _gathered(inverse)


def near(hashes: npt.NDArray[np.uint64], thumbs: Pixels) -> Groups:
    """Places that look alike, in groups by their first place.

    `hashes` `[N]` and `thumbs` `[N, 256]` uint8 as in a Signature. Candidates share two of eight
    bytes, so that nearly all pairs are never looked at; of those at most FAR bits differ, and
    thumbnails correlate by ALIKE at least. Each image of one group is close to some other of it.
    """
    parents = np.arange(len(hashes))
    for one, two in _candidates(hashes):
        _join(one, two, thumbs, parents)
    return _gathered(parents)


def across(
    sides: npt.NDArray[np.integer], keys: npt.NDArray[np.generic], table: Signatures
) -> Positions:
    """For each image the place of one like it that is on a lower side, or -1.

    `sides` `[N]`: 1 and up (train 1, val 2, test 3); 0 is on none. `keys` `[N]` are equal for
    equal content, `table` `[N]` of SIGNATURE. A pair counts, exact or near, never a chain of pairs.
    """
    return near_across(sides, table, _same_content(np.asarray(sides), keys))


def near_across(
    sides: npt.NDArray[np.integer], table: Signatures, known: Positions | None = None
) -> Positions:
    """As `across`, by signatures alone; images that have a partner in `known` keep it."""
    partners = np.full(len(table), -1, np.int64) if known is None else known.copy()
    seen = np.flatnonzero(comparable(table) & (np.asarray(sides) > 0))
    side, open_, thumbs = sides[seen], partners[seen] < 0, table["thumb"]
    for first, second in _candidates(np.ascontiguousarray(table["hash"][seen])):
        swapped = side[first] > side[second]
        lower, upper = np.where(swapped, second, first), np.where(swapped, first, second)
        apart = (side[lower] < side[upper]) & open_[upper]  # what is paired costs nothing more
        lower, upper = lower[apart], upper[apart]
        alike = _alike(seen[lower], seen[upper], thumbs)
        partners[seen[upper[alike]]] = seen[lower[alike]]
        open_[upper[alike]] = False
    return partners


def _same_content(sides: Positions, keys: npt.NDArray[np.generic]) -> Positions:
    """As `across`, by equal keys alone."""
    partners = np.full(len(keys), -1, np.int64)
    there = np.flatnonzero(sides > 0)
    if not len(there):
        return partners
    _, group = np.unique(keys[there], return_inverse=True)
    order = np.lexsort((sides[there], group))
    starts = np.flatnonzero(np.r_[True, group[order][1:] != group[order][:-1]])
    first = np.repeat(there[order[starts]], np.diff(np.r_[starts, len(order)]))
    upper = sides[first] < sides[there[order]]
    partners[there[order[upper]]] = first[upper]
    return partners


def _candidates(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[Positions, Positions]]:
    """Pairs of places whose hashes differ in at most FAR bits; a pair may come several times."""
    parts = np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, _BYTES).astype(np.uint16)
    for a, b in itertools.combinations(range(_BYTES), 2):
        keys = parts[:, a] << 8 | parts[:, b]
        order = np.argsort(keys, kind="stable")
        ordered = hashes[order]
        for one, two in _neighbours(keys[order]):
            close = np.bitwise_count(ordered[one] ^ ordered[two]) <= FAR
            yield order[one[close]], order[two[close]]


def _neighbours(keys: npt.NDArray[np.generic]) -> Iterator[tuple[Positions, Positions]]:
    """All pairs of places with the same key, of sorted `keys`: those side by side first."""
    first, apart = np.arange(len(keys)), 1
    while True:
        first = first[: np.searchsorted(first, len(keys) - apart)]
        first = first[keys[first] == keys[first + apart]]
        if not len(first):
            return
        yield first, first + apart
        apart += 1


def _unit(thumbs: Pixels) -> npt.NDArray[np.float32]:
    """Thumbnails without their mean, of length 1: products are correlations."""
    rows = thumbs.reshape(len(thumbs), THUMB * THUMB).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return rows


def _alike(one: Positions, two: Positions, thumbs: Pixels) -> npt.NDArray[np.bool_]:
    """Whether the thumbnails of each pair correlate by ALIKE."""
    found = np.zeros(len(one), np.bool_)
    for start in range(0, len(one), _BLOCK):
        some = slice(start, start + _BLOCK)
        pairs = _unit(thumbs[one[some]]), _unit(thumbs[two[some]])
        found[some] = np.einsum("ij,ij->i", *pairs) >= ALIKE
    return found


def _join(one: Positions, two: Positions, thumbs: Pixels, parents: Positions) -> None:
    """Bring together the pairs that look alike; every parent is a root, before and after."""
    apart = parents[one] != parents[two]  # what is together already costs nothing more
    one, two = one[apart], two[apart]
    alike = _alike(one, two, thumbs)
    for a, b in zip(one[alike].tolist(), two[alike].tolist(), strict=True):
        _union(parents, a, b)
    while len(one) and (parents != (roots := parents[parents])).any():
        parents[:] = roots


def _root(parents: Positions, place: int) -> int:
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = int(parents[place])
    return place


def _union(parents: Positions, one: int, two: int) -> None:
    first, second = sorted((_root(parents, one), _root(parents, two)))
    parents[second] = first


def _gathered(keys: npt.NDArray[np.generic]) -> Groups:
    """Places with the same key, where there are several, in order of their first place."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.r_[keys[order][1:] != keys[order][:-1], True]) + 1
    parts = np.split(order, ends[:-1])
    return sorted(sorted(part.tolist()) for part in parts if len(part) > 1)
