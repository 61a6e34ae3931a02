"""Images stored as byte ranges of a few large files."""

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
        refuse_oversize(size, size)
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
        return digest(self.names, self._which, self._offsets, self.sizes, self._modified())

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


def splits_of(names: Sequence[str], where: str) -> list[str]:
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
