"""The interface of image sources: names, sizes and bytes by row, and a fingerprint."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from unfreeze.data.images.errors import Undecodable

MEMBER_LIMIT = 768 * 2**20  # bytes; larger encoded images are never read
_RATIO_LIMIT = 200  # compression ratio above which a large member is a decompression bomb
_RATIO_FREE = 64 * 2**20
_CHUNK = 2**12  # names hashed at once


class Source(ABC):
    """Regular files in a fixed order; a row is the index of a file.

    `names`: relative paths with `/`, including files that are not images. `sizes`: bytes.
    `labels`, `splits`, `groups`: one entry per row if the source has them (`""`: missing).
    `skipped`: number of links, devices and other special files of an archive, which are ignored.
    `outputs`: folders written by unfreeze, which are not read. `notes`: messages for people.
    Reading is thread-safe and works after a fork.
    """

    kind: str
    where: str
    names: list[str]
    sizes: npt.NDArray[np.int64]
    labels: list[str] | None = None
    splits: list[str] | None = None
    groups: list[str] | None = None
    listed: bool = False  # every row is an image, listed explicitly
    intensity: str = "auto"  # how images of more than 8 bits are scaled to 8
    skipped: int = 0
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, row: int) -> bytes | npt.NDArray[np.uint8]:
        """The bytes of a file, or pixels uint8 [H, W, 3]; raises OSError or Undecodable."""

    @abstractmethod
    def head(self, row: int, count: int) -> bytes:
        """Up to `count` bytes from the start; empty if the source holds pixels."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of names, sizes, and modification times or checksums."""

    def column(self, name: str) -> list[str] | None:
        """A column of the source's table, one text per row; None if it does not exist."""
        del name
        return None


def hash_names(names: Sequence[str], *columns: npt.NDArray[np.generic]) -> str:
    """SHA-256 of names and columns in order, as 64 hex digits."""
    hasher = hashlib.sha256()
    for start in range(0, len(names), _CHUNK):
        block = "".join(f"{name}\0" for name in names[start : start + _CHUNK])
        hasher.update(block.encode("utf-8", "surrogateescape"))
    for column in columns:
        hasher.update(np.ascontiguousarray(column).tobytes())
    return hasher.hexdigest()


def check_member_size(size: int, packed: int) -> None:
    """Raises Undecodable for files that are too large and for decompression bombs."""
    if size > MEMBER_LIMIT:
        raise Undecodable("bomb", f"{size:,} bytes, more than the limit of {MEMBER_LIMIT:,}")
    if size > _RATIO_FREE and size > _RATIO_LIMIT * max(packed, 1):
        raise Undecodable("bomb", f"{packed:,} bytes decompress to {size:,}")
