"""Which images a run has seen, told by what is in them, whatever their names or archive."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.duplicates import SIGNATURE, Signatures, comparable, near_across
from unfreeze.data.index import Index
from unfreeze.data.sources.source import Source
from unfreeze.data.undecodable import Undecodable
from unfreeze.runtime.atomic import replacing

HEAD = 65_536  # bytes of a file that tell it from others, with its size
_STRETCH = 1536  # bytes: whole pixels of every usual kind
Keys = npt.NDArray[np.uint64]


def content_keys(index: Index, positions: Iterable[int] | None = None) -> Keys:
    """uint64 for each image: a hash of its size and first 64 KiB, or of its pixels.

    Equal files have equal keys in a folder, a zip and a tar; images saved anew do not. Where the
    first 64 KiB end in nothing but one colour, as in a file that is not compressed, all of it is
    taken.
    """
    source = index.source
    chosen = range(len(index)) if positions is None else positions
    return np.array([_key(source, int(index.rows[i])) for i in chosen], np.uint64)


def _key(source: Source, row: int) -> int:
    start, size = source.head(row, HEAD)[:HEAD], int(source.sizes[row])
    # an array has no encoded bytes, and a damaged file tells nothing
    if not start or (size > len(start) and _monotonous(start)):
        start = _whole(source, row) or start
    digest = hashlib.blake2b(size.to_bytes(8, "little") + start, digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _monotonous(start: bytes) -> bool:
    """Whether its end is one colour over and over, of 1 to 4, 6, 8, 12 or 16 bytes."""
    return start[-2 * _STRETCH : -_STRETCH] == start[-_STRETCH:]


def _whole(source: Source, row: int) -> bytes:
    try:
        data = source.read(row)
    except (OSError, Undecodable):
        return b""  # whoever needs the image itself says why it is not to be had
    return data if isinstance(data, bytes) else data.tobytes()


@dataclass(frozen=True)
class Seen:
    """What a model's folder knows of the images of its run: content keys of `train` and `val`.

    `signatures`: of the training images that can be compared; None where none were made.
    """

    train: Keys
    val: Keys
    signatures: Signatures | None = None

    def leaked(self, keys: Keys, table: Signatures) -> npt.NDArray[np.bool_]:
        """Which of the images `[N]`, by key and signature, were trained on, exactly or nearly."""
        exactly: npt.NDArray[np.bool_] = np.isin(keys, self.train)
        if self.signatures is None:
            return exactly
        sides = np.repeat([1, 2], [len(self.signatures), len(table)])
        partners = near_across(sides, np.concatenate([self.signatures, table]))
        return exactly | (partners[len(self.signatures) :] >= 0)


def save_seen(path: Path, seen: Seen) -> None:
    """Write them to an .npz file: 8 bytes an image, and at most 264 of its signature."""
    arrays: dict[str, Any] = {"train": np.sort(seen.train), "val": np.sort(seen.val)}
    if seen.signatures is not None:
        there = seen.signatures[comparable(seen.signatures)]
        arrays |= {"train_hashes": there["hash"], "train_thumbs": there["thumb"]}
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def load_seen(path: Path) -> Seen | None:
    """The reverse of `save_seen`; None where the file is absent."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        signatures = None
        if "train_hashes" in file.files:
            signatures = np.zeros(len(file["train_hashes"]), SIGNATURE)
            signatures["hash"], signatures["thumb"] = file["train_hashes"], file["train_thumbs"]
            signatures["known"] = True
        return Seen(file["train"], file["val"], signatures)
