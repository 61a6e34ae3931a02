"""Images that are stretches of a few large files."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.data.sources.positional import PositionalFile
from unfreeze.data.sources.source import Source, digest, refuse_oversize
from unfreeze.data.split_names import split_name
from unfreeze.data.undecodable import Undecodable
from unfreeze.errors import DataError


class SliceSource(Source):
    """Rows that are `[file, first byte, bytes]` of `files`; every row is a image.

    A file given by its path is opened for each reading, so that thousands of them are no matter;
    one without a name stays open.
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
        """The stretch; Undecodable where the file ends inside it."""
        size = int(self.sizes[row])
        refuse_oversize(size, size)
        data = self._bytes(row, size)
        if len(data) < size:
            raise Undecodable("truncated", "the file that holds it ends inside it")
        return data

    def head(self, row: int, count: int) -> bytes:
        """The first bytes; none where the file cannot be opened (its reading will say why)."""
        try:
            return self._bytes(row, min(count, int(self.sizes[row])))
        except OSError:
            return b""

    def fingerprint(self) -> str:
        """Names, sizes and places, and the times of change of the files that hold them."""
        return digest(self.names, self._which, self._offsets, self.sizes, self._changed())

    def _changed(self) -> npt.NDArray[np.int64]:
        paths = [file for file in self._files if isinstance(file, Path)]
        return np.array([path.stat().st_mtime_ns for path in paths], np.int64)

    def _bytes(self, row: int, count: int) -> bytes:
        file, offset = self._files[int(self._which[row])], int(self._offsets[row])
        if isinstance(file, PositionalFile):
            return file.read(offset, count)
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            return _all(stream.read, count)


def _all(read: Callable[[int], bytes | None], count: int) -> bytes:
    # one call returns at most 2 GiB
    first = read(count) or b""
    parts, done = [first], len(first)
    while done < count and (part := read(count - done)):
        parts.append(part)
        done += len(part)
    return first if len(parts) == 1 else b"".join(parts)


def splits_of(names: Sequence[str], where: str) -> list[str]:
    """The split that the name of each file says (`train-00000.tar`, `val/0.tar`); "" for none.

    The first word of the name counts, else a folder; DataError where some say one and some do not.
    """
    found = [_split(name) for name in names]
    if any(found) and not all(found):
        silent = names[found.index("")]
        raise DataError(
            f"{where}: some files name a split, {silent} does not.",
            "Let the name of every file, or its folder, begin with train, val or test, or of none.",
        )
    return found


def _split(name: str) -> str:
    *folders, last = name.split("/")
    words = [re.split(r"[^A-Za-z]", last)[0], *reversed(folders)]
    said = [split_name(word) for word in words]
    return next((one.word for one in said if one is not None and one.pure), "")
