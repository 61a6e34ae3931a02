"""Pictures that are files of their own: a folder, at any depth."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.data.sources.source import Source, digest, refuse_oversize
from unfreeze.errors import DataError


class FileSource(Source):
    """Files under a root; `names` are relative to it (or absolute, where a list says so)."""

    def __init__(self, root: Path, names: list[str], stats: list[tuple[int, int]]) -> None:
        self._root = str(root)
        self.names = names
        columns = np.array(stats, dtype=np.int64).reshape(-1, 2)
        self.sizes: npt.NDArray[np.int64] = np.ascontiguousarray(columns[:, 0])
        self._times = np.ascontiguousarray(columns[:, 1])

    def read(self, row: int) -> bytes:
        """The file's bytes; raises OSError, or Undecodable above the size limit."""
        with open(self._path(row), "rb") as file:  # noqa: PTH123 - names may not be UTF-8
            refuse_oversize(os.fstat(file.fileno()).st_size, MEMBER_PACKED)
            return file.read()

    def head(self, row: int, count: int) -> bytes:
        """The first bytes; none where the file cannot be opened (its reading will say why)."""
        try:
            with open(self._path(row), "rb") as file:  # noqa: PTH123
                return file.read(count)
        except OSError:
            return b""

    def fingerprint(self) -> str:
        """Names, sizes and times of change."""
        return digest(self.names, self.sizes, self._times)

    def _path(self, row: int) -> str:
        return os.path.join(self._root, self.names[row])  # noqa: PTH118


MEMBER_PACKED = 2**62  # a plain file is not packed: only its size can be too large


class FolderSource(FileSource):
    """Every regular file below a folder, in the order of sorted names; links are followed.

    A link that leads nowhere stays in the list: its reading fails and names it. A folder that
    is its own ancestor by a link is not entered again.
    """

    kind = "folder"

    def __init__(self, path: Path) -> None:
        names: list[str] = []
        stats: list[tuple[int, int]] = []
        self.where = str(path)
        try:
            for name, size, changed in _walk(str(path), "", ()):
                names.append(name)
                stats.append((size, changed))
        except OSError as error:
            raise DataError(
                f"The folder {error.filename} cannot be read: {error.strerror}.",
                "Check its permissions, or move it out of the data.",
            ) from error
        super().__init__(path, names, stats)


def _walk(
    folder: str, prefix: str, ancestors: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of change of each file below, depth first."""
    status = os.stat(folder)  # noqa: PTH116
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors and status.st_ino:
        return
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if _leads_to_itself(entry):
            yield prefix + entry.name, 0, 0
        elif entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", (*ancestors, identity))
        elif entry.is_file():
            status = entry.stat()
            yield prefix + entry.name, status.st_size, status.st_mtime_ns
        elif entry.is_symlink():
            yield prefix + entry.name, 0, 0


def _leads_to_itself(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a link that leads nowhere for being part of a circle of links."""
    try:
        entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return True
        raise
    return False
