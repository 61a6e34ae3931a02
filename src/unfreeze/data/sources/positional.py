"""Reads at an offset (`pread`), safe in threads and after a fork."""

import os
import threading
import weakref
from pathlib import Path
from typing import Any


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
                return _read_fully(lambda left, _: os.read(self.descriptor, left), count)
        return _read_fully(lambda left, done: os.pread(self.descriptor, left, offset + done), count)

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


def _read_fully(read: Any, count: int) -> bytes:
    # one call returns at most 2 GiB and can be interrupted
    first: bytes = read(count, 0)
    if len(first) == count or not first:
        return first
    parts, done = [first], len(first)
    while done < count and (part := read(count - done, done)):
        parts.append(part)
        done += len(part)
    return b"".join(parts)
