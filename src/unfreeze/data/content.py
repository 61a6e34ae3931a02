"""Content hashes that identify the images of a run, independent of file names and archives."""

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


@dataclass(frozen=True)
class Seen:
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
        partners = near_across(splits, np.concatenate([self.signatures, table]))
        return leaked | (partners[len(self.signatures) :] >= 0)


def save_seen(path: Path, seen: Seen) -> None:
    """Write an .npz file: 8 bytes per image, plus up to 264 per training image for its hash."""
    arrays: dict[str, Any] = {"train": np.sort(seen.train), "val": np.sort(seen.val)}
    if seen.signatures is not None:
        known = seen.signatures[comparable(seen.signatures)]
        arrays |= {"train_hashes": known["hash"], "train_thumbs": known["thumb"]}
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def load_seen(path: Path) -> Seen | None:
    """The inverse of `save_seen`; None if the file does not exist."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        signatures = None
        if "train_hashes" in file.files:
            signatures = np.zeros(len(file["train_hashes"]), SIGNATURE)
            signatures["hash"], signatures["thumb"] = file["train_hashes"], file["train_thumbs"]
            signatures["known"] = True
        return Seen(file["train"], file["val"], signatures)
