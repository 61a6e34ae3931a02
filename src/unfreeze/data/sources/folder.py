"""Image files in a folder, at any depth."""

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
    MARKER_FILES,
    is_output,
    is_run,
    outputs_note,
    run_folder_error,
)
from unfreeze.data.sources.source import Source, check_member_size, hash_names
from unfreeze.errors import DataError
from unfreeze.text import as_name, as_text, as_texts


class FileSource(Source):
    """Files under a root; `names` are relative to it (absolute if a table lists them so)."""

    def __init__(
        self, root: Path, names: list[str], sizes: Sequence[int], times: Sequence[int]
    ) -> None:
        self._root = str(root)
        self.names = names
        self.sizes: npt.NDArray[np.int64] = np.array(sizes, np.int64)
        self._times = np.array(times, np.int64)

    def read(self, row: int) -> bytes:
        """The bytes of the file; raises OSError, or Undecodable above the size limit."""
        with open(self._path(row), "rb") as file:  # noqa: PTH123 - names may not be UTF-8
            check_member_size(os.fstat(file.fileno()).st_size, MEMBER_PACKED)
            return file.read()

    def head(self, row: int, count: int) -> bytes:
        """The first bytes; empty if the file cannot be opened (`read` raises the reason)."""
        try:
            with open(self._path(row), "rb") as file:  # noqa: PTH123
                return file.read(count)
        except OSError:
            return b""

    def fingerprint(self) -> str:
        """Names, sizes and modification times."""
        return hash_names(self.names, self.sizes, self._times)

    def _path(self, row: int) -> str:
        return os.path.join(self._root, as_name(self.names[row]))  # noqa: PTH118


MEMBER_PACKED = 2**62  # plain files are not compressed: only the size limit applies


class FolderSource(FileSource):
    """All regular files below a folder, sorted by name; links are followed.

    Broken links stay in the list, and reading them fails. Link cycles are followed only once.
    """

    kind = "folder"

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        files = _Walk()
        try:
            files.walk(str(path), "", ())
        except OSError as error:
            raise DataError(
                f"The folder {error.filename} cannot be read: {error.strerror}.",
                "Check its permissions, or move it out of the dataset.",
            ) from error
        super().__init__(path, as_texts(files.names), files.sizes, files.times)
        self.outputs = tuple(map(as_text, files.outputs))
        self.notes = outputs_note(self.outputs)


class _Walk:
    """Names, sizes and modification times of files, in arrays to save memory for a million."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sizes = array("q")
        self.times = array("q")
        self.outputs: list[str] = []

    def walk(self, folder: str, prefix: str, ancestors: tuple[tuple[int, int], ...]) -> None:
        """Adds all files below `folder`, depth first."""
        status = os.stat(folder)  # noqa: PTH116
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors and status.st_ino:
            return
        with os.scandir(folder) as iterator:
            entries = sorted(iterator, key=attrgetter("name"))
        marked = not MARKER_FILES.isdisjoint(entry.name for entry in entries)
        if marked and self._is_output(folder, prefix, {entry.name for entry in entries}):
            return
        for entry in entries:
            if entry.is_symlink() and _is_link_cycle(entry):
                self._add(prefix + entry.name, 0, 0)
            elif entry.is_dir():
                self.walk(entry.path, f"{prefix}{entry.name}/", (*ancestors, identity))
            elif entry.is_file():
                status = entry.stat()
                self._add(prefix + entry.name, status.st_size, status.st_mtime_ns)
            elif entry.is_symlink():
                self._add(prefix + entry.name, 0, 0)

    def _is_output(self, folder: str, prefix: str, entries: set[str]) -> bool:
        """Whether unfreeze wrote the folder, which is recorded; DataError if it is the root."""

        def head(name: str) -> bytes:
            path = os.path.join(folder, name)  # noqa: PTH118
            if not os.path.isfile(path):  # noqa: PTH113 - not a pipe
                return b""
            with open(path, "rb") as file:  # noqa: PTH123
                return file.read(HEAD)

        if not prefix:  # a quarantine folder can be read as data
            if is_run(entries, head):
                raise run_folder_error(folder)
            return False
        output = is_output(entries, head)
        if output:
            self.outputs.append(prefix[:-1])
        return output

    def _add(self, name: str, size: int, time: int) -> None:
        self.names.append(name)
        self.sizes.append(size)
        self.times.append(time)


def _is_link_cycle(link: "os.DirEntry[str]") -> bool:
    """Whether a link is broken because it is part of a cycle of links."""
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
