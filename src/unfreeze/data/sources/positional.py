"""Reading at a position, from any thread and after a fork: no shared place in the file."""

import os
import threading
import weakref
from pathlib import Path
from typing import Any


class PositionalFile:
    """An open file without a place of its own; `read(offset, count)` may return fewer bytes.

    Pickling carries the path and opens it again, so it also travels to spawned processes; an
    unnamed file travels where the system names the open files of processes (Linux), as long as
    this process lives.
    """

    def __init__(self, path: Path) -> None:
        self._adopt(path, os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))

    @classmethod
    def of_descriptor(cls, descriptor: int) -> "PositionalFile":
        """Takes over an open descriptor (of an unnamed file)."""
        made = cls.__new__(cls)
        made._adopt(None, descriptor)
        return made

    def _adopt(self, path: Path | None, descriptor: int) -> None:
        self._path, self.descriptor = path, descriptor
        self._lock = threading.Lock()
        self._close = weakref.finalize(self, os.close, descriptor)
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on, fewer at the end of the file."""
        if not hasattr(os, "pread"):  # Windows
            with self._lock:
                os.lseek(self.descriptor, offset, os.SEEK_SET)
                return _all(lambda left, _: os.read(self.descriptor, left), count)
        return _all(lambda left, done: os.pread(self.descriptor, left, offset + done), count)

    def __reduce__(self) -> tuple[type["PositionalFile"], tuple[Path]]:
        path = self._path or self.alias
        if path is None:
            raise TypeError("an unnamed file cannot be pickled")
        return PositionalFile, (path,)

    @property
    def alias(self) -> Path | None:
        """The name under which other processes reach the open file; None where there is none."""
        path = Path(f"/proc/{os.getpid()}/fd/{self.descriptor}")
        return path if path.exists() else None


def _all(read: Any, count: int) -> bytes:
    # one call returns at most 2 GiB, and may be interrupted: ask until the end
    first: bytes = read(count, 0)
    if len(first) == count or not first:
        return first
    parts, done = [first], len(first)
    while done < count and (part := read(count - done, done)):
        parts.append(part)
        done += len(part)
    return b"".join(parts)
