"""Images that are files of their own: a folder, at any depth."""

import errno
import os
from array import array
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.data.sources.own_folders import (
    HEAD,
    MARKS,
    is_output,
    is_run,
    outputs_note,
    refuse_run,
)
from unfreeze.data.sources.source import Source, digest, refuse_oversize
from unfreeze.errors import DataError
from unfreeze.text import as_name, as_text, as_texts


class FileSource(Source):
    """Files under a root; `names` are relative to it (or absolute, where a list says so)."""

    def __init__(
        self, root: Path, names: list[str], sizes: Sequence[int], times: Sequence[int]
    ) -> None:
        self._root = str(root)
        self.names = names
        self.sizes: npt.NDArray[np.int64] = np.array(sizes, np.int64)
        self._times = np.array(times, np.int64)

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
        return os.path.join(self._root, as_name(self.names[row]))  # noqa: PTH118


MEMBER_PACKED = 2**62  # a plain file is not packed: only its size can be too large


class FolderSource(FileSource):
    """Every regular file below a folder, in the order of sorted names; links are followed.

    A link that leads nowhere stays in the list: its reading fails and names it. A folder that
    is its own ancestor by a link is not entered again.
    """

    kind = "folder"

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        found = _Found()
        try:
            found.walk(str(path), "", ())
        except OSError as error:
            raise DataError(
                f"The folder {error.filename} cannot be read: {error.strerror}.",
                "Check its permissions, or move it out of the data.",
            ) from error
        super().__init__(path, as_texts(found.names), found.sizes, found.times)
        self.outputs = tuple(map(as_text, found.outputs))
        self.notes = outputs_note(self.outputs)


class _Found:
    """Names, sizes and times of change of files; as numbers, not objects, for a million of them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sizes = array("q")
        self.times = array("q")
        self.outputs: list[str] = []

    def walk(self, folder: str, prefix: str, ancestors: tuple[tuple[int, int], ...]) -> None:
        """Adds every file below, depth first."""
        status = os.stat(folder)  # noqa: PTH116
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors and status.st_ino:
            return
        with os.scandir(folder) as inside:
            entries = sorted(inside, key=attrgetter("name"))
        marked = not MARKS.isdisjoint(entry.name for entry in entries)
        if marked and self._written_here(folder, prefix, {entry.name for entry in entries}):
            return
        for entry in entries:
            if entry.is_symlink() and _leads_to_itself(entry):
                self._add(prefix + entry.name, 0, 0)
            elif entry.is_dir():
                self.walk(entry.path, f"{prefix}{entry.name}/", (*ancestors, identity))
            elif entry.is_file():
                status = entry.stat()
                self._add(prefix + entry.name, status.st_size, status.st_mtime_ns)
            elif entry.is_symlink():
                self._add(prefix + entry.name, 0, 0)

    def _written_here(self, folder: str, prefix: str, inside: set[str]) -> bool:
        """Whether this tool wrote the folder; noted, and refused where it is all there is."""

        def head(name: str) -> bytes:
            path = os.path.join(folder, name)  # noqa: PTH118
            if not os.path.isfile(path):  # noqa: PTH113 - never a pipe
                return b""
            with open(path, "rb") as file:  # noqa: PTH123
                return file.read(HEAD)

        if not prefix:  # a quarantine that is named is looked at
            if is_run(inside, head):
                raise refuse_run(folder)
            return False
        found = is_output(inside, head)
        if found:
            self.outputs.append(prefix[:-1])
        return found

    def _add(self, name: str, size: int, changed: int) -> None:
        self.names.append(name)
        self.sizes.append(size)
        self.times.append(changed)


def _leads_to_itself(link: "os.DirEntry[str]") -> bool:
    """Whether a link leads nowhere for being part of a circle of links."""
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
