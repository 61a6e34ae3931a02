"""Which pictures are the same by what is in them, whatever their names, dates or archive."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.index import Index
from unfreeze.data.sources.source import Source
from unfreeze.data.undecodable import Undecodable
from unfreeze.runtime.atomic import replacing

HEAD = 65_536  # bytes of a file that tell it from others, with its size
_STRETCH = 1536  # bytes: whole pixels of every usual kind
Keys = npt.NDArray[np.uint64]


def content_keys(index: Index, positions: Iterable[int] | None = None) -> Keys:
    """uint64 for each picture: a hash of its size and first 64 KiB, or of its pixels.

    Equal files have equal keys in a folder, a zip and a tar; pictures saved anew do not. Where the
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
        return b""  # whoever needs the picture itself says why it is not to be had
    return data if isinstance(data, bytes) else data.tobytes()


def save_keys(path: Path, keys: dict[str, Keys]) -> None:
    """Write the keys of each split to an .npz file, sorted."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        arrays: dict[str, Any] = {name: np.sort(values) for name, values in keys.items()}
        np.savez(stream, **arrays)


def load_keys(path: Path) -> dict[str, Keys]:
    """The keys of each split; {} where the file is absent."""
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
