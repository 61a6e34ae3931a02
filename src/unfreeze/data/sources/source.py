"""The interface of image sources: names, sizes and bytes by row, and a fingerprint."""

import hashlib
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    noun: str = "image"  # what a row is
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

    def sample(self, row: int) -> npt.NDArray[Any]:
        """The decoded row: pixels uint8 [H, W, 3] of an image; raises OSError or Undecodable."""
        from unfreeze.data.images.decode import decode  # Pillow and OpenCV: a listing needs neither

        return decode(self.read(row), self.intensity)

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


class PositionalFile:
    """An open file without a file position.

    It can be pickled: the path is stored and opened again. Unnamed files can be pickled on Linux
    only, and can be opened while this process runs.
    """

    def __init__(self, path: Path) -> None:
        self._adopt(path, os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))

    @classmethod
    def of_descriptor(cls, descriptor: int) -> "PositionalFile":
        """Takes ownership of the open descriptor of an unnamed file."""
        file = cls.__new__(cls)
        file._adopt(None, descriptor)
        return file

    def _adopt(self, path: Path | None, descriptor: int) -> None:
        self._path, self.descriptor = path, descriptor
        self._lock = threading.Lock()
        self._close = weakref.finalize(self, os.close, descriptor)
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer at the end of the file."""
        if not hasattr(os, "pread"):  # Windows
            with self._lock:
                os.lseek(self.descriptor, offset, os.SEEK_SET)
                return _read_at_fully(lambda left, _: os.read(self.descriptor, left), count)
        return _read_at_fully(
            lambda left, done: os.pread(self.descriptor, left, offset + done), count
        )

    def __reduce__(self) -> tuple[type["PositionalFile"], tuple[Path]]:
        path = self._path or self.alias
        if path is None:
            raise TypeError("an unnamed file cannot be pickled")
        return PositionalFile, (path,)

    @property
    def alias(self) -> Path | None:
        """The path by which other processes can open the file; None if there is none."""
        path = Path(f"/proc/{os.getpid()}/fd/{self.descriptor}")
        return path if path.exists() else None


def _read_at_fully(read: Any, count: int) -> bytes:
    # one call returns at most 2 GiB and can be interrupted
    first: bytes = read(count, 0)
    if len(first) == count or not first:
        return first
    parts, done = [first], len(first)
    while done < count and (part := read(count - done, done)):
        parts.append(part)
        done += len(part)
    return b"".join(parts)


class ByteRangeSource(Source):
    """Each row is an image: a range of bytes of one of several files.

    Files given by path are opened for each read, so that there can be thousands of them; unnamed
    files stay open.
    """

    listed = True

    def _hold(
        self,
        names: list[str],
        files: Sequence[Path | PositionalFile],
        ranges: Sequence[npt.NDArray[np.int64]],
    ) -> None:
        """Sets the rows; `ranges`: (offset, size) of the images of each file, [rows, 2]."""
        self.names, self._files = names, list(files)
        table = np.concatenate([np.zeros((0, 2), np.int64), *ranges])
        self._offsets, self.sizes = (np.ascontiguousarray(column) for column in table.T)
        self._file_numbers = np.repeat(np.arange(len(ranges)), [*map(len, ranges)])

    def read(self, row: int) -> bytes:
        """The bytes of an image; Undecodable if the file ends before them."""
        size = int(self.sizes[row])
        check_member_size(size, size)
        data = self._bytes(row, size)
        if len(data) < size:
            raise Undecodable("truncated", "the file that contains it is truncated")
        return data

    def head(self, row: int, count: int) -> bytes:
        """The first bytes; empty if the file cannot be opened (`read` raises the reason)."""
        try:
            return self._bytes(row, min(count, int(self.sizes[row])))
        except OSError:
            return b""

    def fingerprint(self) -> str:
        """Names, files, offsets and sizes, and the modification times of the files."""
        modified = np.array([path.stat().st_mtime_ns for path in self._originals()], np.int64)
        return hash_names(self.names, self._file_numbers, self._offsets, self.sizes, modified)

    def _originals(self) -> list[Path]:
        """The files whose modification times count."""
        return [file for file in self._files if isinstance(file, Path)]

    def _bytes(self, row: int, count: int) -> bytes:
        file = self._files[int(self._file_numbers[row])]
        opened = PositionalFile(file) if isinstance(file, Path) else file
        return opened.read(int(self._offsets[row]), count)
