"""Images stored as byte ranges of a few large files."""

import os
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.images.errors import Undecodable
from unfreeze.data.index.split_names import split_name
from unfreeze.data.sources.source import Source, check_member_size, hash_names
from unfreeze.errors import DataError


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
    """Each row is an image: `size` bytes from `offset` of one of `files`.

    Files given by path are opened for each read, so that there can be thousands of them; unnamed
    files stay open.
    """

    listed = True

    def _hold(
        self,
        files: Sequence[Path | PositionalFile],
        names: list[str],
        slices: Sequence[tuple[int, int, int]],
    ) -> None:
        self.names, self._files = names, list(files)
        table = np.array(slices, np.int64).reshape(-1, 3)
        self._which = np.ascontiguousarray(table[:, 0])
        self._offsets = np.ascontiguousarray(table[:, 1])
        self.sizes: npt.NDArray[np.int64] = np.ascontiguousarray(table[:, 2])

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
        return hash_names(self.names, self._which, self._offsets, self.sizes, self._modified())

    def _modified(self) -> npt.NDArray[np.int64]:
        paths = [file for file in self._files if isinstance(file, Path)]
        return np.array([path.stat().st_mtime_ns for path in paths], np.int64)

    def _bytes(self, row: int, count: int) -> bytes:
        file, offset = self._files[int(self._which[row])], int(self._offsets[row])
        if isinstance(file, PositionalFile):
            return file.read(offset, count)
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            return _read_fully(stream.read, count)


def _read_fully(read: Callable[[int], bytes | None], count: int) -> bytes:
    # one call returns at most 2 GiB
    first = read(count) or b""
    parts, total = [first], len(first)
    while total < count and (part := read(count - total)):
        parts.append(part)
        total += len(part)
    return first if len(parts) == 1 else b"".join(parts)


def splits_of_file_names(names: Sequence[str], where: str) -> list[str]:
    """The split in the name of each file (`train-00000.tar`, `val/0.tar`); "" if there is none.

    It is the first word of the file name, else a folder. DataError if only some names have one.
    """
    splits = [_split(name) for name in names]
    if any(splits) and not all(splits):
        missing = names[splits.index("")]
        raise DataError(
            f"{where}: some file names contain a split, but {missing} does not.",
            "Start the name of every file, or of its folder, with train, val or test, or of none.",
        )
    return splits


def _split(name: str) -> str:
    *folders, last = name.split("/")
    words = [re.split(r"[^A-Za-z]", last)[0], *reversed(folders)]
    splits = [split_name(word) for word in words]
    return next((split.word for split in splits if split is not None and split.pure), "")
