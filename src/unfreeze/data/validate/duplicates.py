"""Exact and near-duplicates: perceptual hashes of images, and how pairs are compared.

`scan`, `finetune` and `evaluate` use the same comparison.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unfreeze.data.images.errors import Undecodable
from unfreeze.data.index.index import Index
from unfreeze.data.sources.source import Source
from unfreeze.runtime.atomic import replacing

MAX_HAMMING = 6  # largest Hamming distance between the 64-bit hashes of near-duplicates
MIN_CORRELATION = 0.985  # smallest correlation between the grey thumbnails of near-duplicates
THUMB = 16  # side of the thumbnail
SAMPLED = 256  # pixels of the shorter side; larger images are subsampled
_DCT_SIDE = 32  # side of the grey image whose low frequencies are hashed
_MEDIAN = 31  # position of the median among the 63 coefficients after the mean
_FLAT = 4.0  # standard deviation of grey below which an image has no usable hash
_BATCH = 4_000  # pairs of thumbnails per batch of comparisons
_BYTES = 8  # of a hash; if at most FAR bits differ, at least two bytes are equal

Groups = list[list[int]]
Positions = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
# a signature in an array; `known` is false for images without one
SIGNATURE = np.dtype(
    [("known", "?"), ("flat", "?"), ("hash", "<u8"), ("thumb", "u1", (THUMB * THUMB,))]
)
Signatures = npt.NDArray[np.void]


class Signature(NamedTuple):
    """A perceptual `hash` of 64 bits and a thumbnail `thumb`, grey uint8 `[THUMB * THUMB]`.

    `thumb` is None for a flat image, which cannot be compared.
    """

    hash: int
    thumb: Pixels | None

    def into(self, table: Signatures, row: int) -> None:
        """Writes the signature to a row of an array of SIGNATURE."""
        entry = table[row]
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
    full = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(full, (_DCT_SIDE, _DCT_SIDE), interpolation=cv2.INTER_AREA)
    if cv2.meanStdDev(grey)[1][0, 0] < _FLAT:
        return Signature(0, None)
    waves = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()
    bits = waves > np.partition(waves[1:], _MEDIAN)[_MEDIAN]
    thumb = cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    hash_bits = int.from_bytes(np.packbits(bits).tobytes(), "big")
    return Signature(hash_bits, np.asarray(thumb, np.uint8).ravel())


def comparable(table: Signatures) -> npt.NDArray[np.bool_]:
    """Which signatures can be compared: those that are known and not flat."""
    mask: npt.NDArray[np.bool_] = table["known"] & ~table["flat"]
    return mask


def exact_groups(digests: npt.NDArray[np.generic]) -> Groups:
    """Groups of positions with equal `digests` `[N]`, ordered by their first position."""
    _, inverse = np.unique(digests, return_inverse=True)
    return _groups_of_equal(inverse)


def near_groups(hashes: npt.NDArray[np.uint64], thumbs: Pixels) -> Groups:
    """Groups of near-duplicate positions, ordered by their first position.

    `hashes` `[N]` and `thumbs` `[N, 256]` uint8 as in Signature. Only pairs with two equal bytes of
    eight are compared; near-duplicates differ in at most FAR bits, and their thumbnails have a
    correlation of at least ALIKE. Groups are connected components of such pairs.
    """
    parents = np.arange(len(hashes))
    for first, second in _candidates(hashes):
        _merge_pairs(first, second, thumbs, parents)
    return _groups_of_equal(parents)


def duplicates_across_splits(
    sides: npt.NDArray[np.integer], keys: npt.NDArray[np.generic], table: Signatures
) -> Positions:
    """For each image the position of a duplicate in an earlier split, or -1.

    `sides` `[N]`: split numbers from 1 (train 1, val 2, test 3); 0 is in no split. `keys` `[N]` are
    equal for equal content, `table` `[N]` of SIGNATURE. Exact and near-duplicate pairs count, not
    chains of pairs.
    """
    return near_duplicates_across_splits(sides, table, _exact_across(np.asarray(sides), keys))


def near_duplicates_across_splits(
    sides: npt.NDArray[np.integer], table: Signatures, known: Positions | None = None
) -> Positions:
    """`across` for near-duplicates only; partners in `known` are kept."""
    partners = np.full(len(table), -1, np.int64) if known is None else known.copy()
    rows = np.flatnonzero(comparable(table) & (np.asarray(sides) > 0))
    side, unpaired, thumbs = sides[rows], partners[rows] < 0, table["thumb"]
    for first, second in _candidates(np.ascontiguousarray(table["hash"][rows])):
        swapped = side[first] > side[second]
        lower, upper = np.where(swapped, second, first), np.where(swapped, first, second)
        relevant = (side[lower] < side[upper]) & unpaired[upper]  # skips images that have a partner
        lower, upper = lower[relevant], upper[relevant]
        matches = _thumbs_match(rows[lower], rows[upper], thumbs)
        partners[rows[upper[matches]]] = rows[lower[matches]]
        unpaired[upper[matches]] = False
    return partners


def duplicates_of(
    position: int, keys: npt.NDArray[np.generic], table: Signatures
) -> npt.NDArray[np.bool_]:
    """Mask `[N]`: exact and near-duplicates of the image at `position`, itself included.

    `keys` `[N]` and `table` `[N]` as in `duplicates_across_splits`.
    """
    mask: npt.NDArray[np.bool_] = keys == keys[position]
    usable = comparable(table)
    if usable[position]:
        distances = np.bitwise_count(table["hash"] ^ table["hash"][position])
        close = np.flatnonzero(usable & (distances <= MAX_HAMMING))
        itself = np.full(len(close), position)
        mask[close[_thumbs_match(itself, close, table["thumb"])]] = True
    return mask


def _exact_across(sides: Positions, keys: npt.NDArray[np.generic]) -> Positions:
    """`across` for equal keys only."""
    partners = np.full(len(keys), -1, np.int64)
    rows = np.flatnonzero(sides > 0)
    if not len(rows):
        return partners
    _, group = np.unique(keys[rows], return_inverse=True)
    order = np.lexsort((sides[rows], group))
    starts = np.flatnonzero(np.r_[True, group[order][1:] != group[order][:-1]])
    first = np.repeat(rows[order[starts]], np.diff(np.r_[starts, len(order)]))
    upper = sides[first] < sides[rows[order]]
    partners[rows[order[upper]]] = first[upper]
    return partners


def _candidates(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[Positions, Positions]]:
    """Pairs of positions whose hashes differ in at most FAR bits; pairs may repeat."""
    parts = np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, _BYTES).astype(np.uint16)
    for a, b in itertools.combinations(range(_BYTES), 2):
        keys = parts[:, a] << 8 | parts[:, b]
        order = np.argsort(keys, kind="stable")
        ordered = hashes[order]
        for first, second in _equal_pairs(keys[order]):
            close = np.bitwise_count(ordered[first] ^ ordered[second]) <= MAX_HAMMING
            yield order[first[close]], order[second[close]]


def _equal_pairs(keys: npt.NDArray[np.generic]) -> Iterator[tuple[Positions, Positions]]:
    """All pairs of positions with equal values in sorted `keys`, by increasing distance."""
    first, distance = np.arange(len(keys)), 1
    while True:
        first = first[: np.searchsorted(first, len(keys) - distance)]
        first = first[keys[first] == keys[first + distance]]
        if not len(first):
            return
        yield first, first + distance
        distance += 1


def _unit(thumbs: Pixels) -> npt.NDArray[np.float32]:
    """Thumbnails with mean 0 and norm 1, so that dot products are correlations."""
    rows = thumbs.reshape(len(thumbs), THUMB * THUMB).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return rows


def _thumbs_match(first: Positions, second: Positions, thumbs: Pixels) -> npt.NDArray[np.bool_]:
    """Whether the thumbnails of each pair have a correlation of at least MIN_CORRELATION."""
    matches = np.zeros(len(first), np.bool_)
    for start in range(0, len(first), _BATCH):
        batch = slice(start, start + _BATCH)
        pairs = _unit(thumbs[first[batch]]), _unit(thumbs[second[batch]])
        matches[batch] = np.einsum("ij,ij->i", *pairs) >= MIN_CORRELATION
    return matches


def _merge_pairs(first: Positions, second: Positions, thumbs: Pixels, parents: Positions) -> None:
    """Merges near-duplicate pairs; `parents` is fully compressed before and after."""
    separate = parents[first] != parents[second]  # skips pairs of the same group
    first, second = first[separate], second[separate]
    matches = _thumbs_match(first, second, thumbs)
    for a, b in zip(first[matches].tolist(), second[matches].tolist(), strict=True):
        _union(parents, a, b)
    while len(first) and (parents != (roots := parents[parents])).any():
        parents[:] = roots


def _root(parents: Positions, position: int) -> int:
    while parents[position] != position:
        parents[position] = parents[parents[position]]
        position = int(parents[position])
    return position


def _union(parents: Positions, first: int, second: int) -> None:
    lower_root, upper_root = sorted((_root(parents, first), _root(parents, second)))
    parents[upper_root] = lower_root


def _groups_of_equal(keys: npt.NDArray[np.generic]) -> Groups:
    """Groups of two or more positions with equal keys, ordered by their first position."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.r_[keys[order][1:] != keys[order][:-1], True]) + 1
    parts = np.split(order, ends[:-1])
    return sorted(sorted(part.tolist()) for part in parts if len(part) > 1)


HEAD = 65_536  # bytes at the start of a file that are hashed, with its size
_REPEAT_BYTES = 1536  # bytes: a multiple of all usual pixel sizes
Keys = npt.NDArray[np.uint64]


def content_keys(index: Index, positions: Iterable[int] | None = None) -> Keys:
    """uint64 per image: a hash of the file size and the first 64 KiB, or of its pixels.

    Identical files have equal keys in folders, zip and tar archives; re-encoded images do not. If
    the first 64 KiB end in a single repeated colour, as in uncompressed formats, the whole file is
    hashed.
    """
    source = index.source
    selected = range(len(index)) if positions is None else positions
    return np.array([_key(source, int(index.rows[i])) for i in selected], np.uint64)


def _key(source: Source, row: int) -> int:
    head, size = source.head(row, HEAD)[:HEAD], int(source.sizes[row])
    # pixel arrays have no encoded bytes; an unreadable file falls back to its first bytes
    if not head or (size > len(head) and _ends_in_one_colour(head)):
        head = _full_content(source, row) or head
    digest = hashlib.blake2b(size.to_bytes(8, "little") + head, digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _ends_in_one_colour(head: bytes) -> bool:
    """Whether the end repeats one pixel value of 1 to 4, 6, 8, 12 or 16 bytes."""
    return head[-2 * _REPEAT_BYTES : -_REPEAT_BYTES] == head[-_REPEAT_BYTES:]


def _full_content(source: Source, row: int) -> bytes:
    try:
        data = source.read(row)
    except (OSError, Undecodable):
        return b""  # decoding the image reports the reason
    return data if isinstance(data, bytes) else data.tobytes()


def similar_images(index: Index, usable: Positions, table: Signatures) -> Groups:
    """Groups of duplicates and near-duplicates among the `usable` positions.

    `table` [N] of SIGNATURE, by position in `index`.
    """
    signed = table[usable]
    comparable_images = usable[comparable(signed)]
    groups = near_groups(table["hash"][comparable_images], table["thumb"][comparable_images])
    # flat images (one colour) have equal signatures: grouped only if their bytes are equal
    flat = usable[signed["known"] & signed["flat"]]
    same = exact_groups(content_keys(index, flat.tolist()))
    return [comparable_images[g].tolist() for g in groups] + [flat[g].tolist() for g in same]


@dataclass(frozen=True)
class TrainedImages:
    """Content keys of the training and validation images of a run, stored with its model.

    `signatures`: perceptual hashes of the training images; None if they were not computed.
    """

    train: Keys
    val: Keys
    signatures: Signatures | None = None

    def leaked(self, keys: Keys, table: Signatures) -> npt.NDArray[np.bool_]:
        """Whether train contains an exact or near-duplicate of each image, `[N]`."""
        leaked: npt.NDArray[np.bool_] = np.isin(keys, self.train)
        if self.signatures is None:
            return leaked
        splits = np.repeat([1, 2], [len(self.signatures), len(table)])
        partners = near_duplicates_across_splits(splits, np.concatenate([self.signatures, table]))
        return leaked | (partners[len(self.signatures) :] >= 0)


def save_trained_images(path: Path, seen: TrainedImages) -> None:
    """Write an .npz file: 8 bytes per image, plus up to 264 per training image for its hash."""
    arrays: dict[str, Any] = {"train": np.sort(seen.train), "val": np.sort(seen.val)}
    if seen.signatures is not None:
        known = seen.signatures[comparable(seen.signatures)]
        arrays |= {"train_hashes": known["hash"], "train_thumbs": known["thumb"]}
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def load_trained_images(path: Path) -> TrainedImages | None:
    """The inverse of `save_trained_images`; None if the file does not exist."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        signatures = None
        if "train_hashes" in file.files:
            signatures = np.zeros(len(file["train_hashes"]), SIGNATURE)
            signatures["hash"], signatures["thumb"] = file["train_hashes"], file["train_thumbs"]
            signatures["known"] = True
        return TrainedImages(file["train"], file["val"], signatures)
