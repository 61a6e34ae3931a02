"""Several sources concatenated into one."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt

from unfreeze.data.sources.source import Source
from unfreeze.errors import UsageError
from unfreeze.text import as_text


class ConcatSource(Source):
    """The rows of `parts` in order; each name starts with the title of its source.

    Labels, splits and notes are those of the parts.
    """

    kind = "several"

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = tuple(parts)
        self.where = ", ".join(part.where for part in parts)
        self.titles = unique_titles([as_text(part.where) for part in parts])
        self.names = [
            f"{title}/{name}"
            for title, part in zip(self.titles, parts, strict=True)
            for name in part.names
        ]
        self.sizes: npt.NDArray[np.int64] = np.concatenate([part.sizes for part in parts])
        self.starts = np.cumsum([0, *(len(part) for part in parts)])[:-1].tolist()
        self.skipped = sum(part.skipped for part in parts)

    def read(self, row: int) -> bytes | npt.NDArray[np.uint8]:
        """The bytes or pixels, from the source of the row."""
        part, part_row = self._locate(row)
        return part.read(part_row)

    def head(self, row: int, count: int) -> bytes:
        """The first bytes, from the source of the row."""
        part, part_row = self._locate(row)
        return part.head(part_row, count)

    def fingerprint(self) -> str:
        """Titles and fingerprints of the parts, in order."""
        lines = [
            f"{title} {part.fingerprint()}"
            for title, part in zip(self.titles, self.parts, strict=True)
        ]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def column(self, name: str) -> list[str] | None:
        """The column of the parts that have it; empty for rows of the others."""
        columns = [part.column(name) for part in self.parts]
        if all(column is None for column in columns):
            return None
        return [
            text
            for part, column in zip(self.parts, columns, strict=True)
            for text in (column or [""] * len(part))
        ]

    def spans(self) -> list[tuple[Source, slice]]:
        """Each part with its rows."""
        return [
            (part, slice(start, start + len(part)))
            for part, start in zip(self.parts, self.starts, strict=True)
        ]

    def _locate(self, row: int) -> tuple[Source, int]:
        index = bisect_right(self.starts, row) - 1
        return self.parts[index], row - self.starts[index]


def unique_titles(names: Sequence[str]) -> list[str]:
    """The end of each path, with as many parent folders as needed to make them unique."""
    paths = [PurePath(name).parts or (name,) for name in names]
    for depth in range(1, max(map(len, paths)) + 1):
        ends = ["/".join(path[-depth:]) for path in paths]
        if len(set(ends)) == len(ends):
            return ends
    raise UsageError(f"{names[0]} is given twice.", "Give each source once.")


def refuse_overlap(names: Sequence[str]) -> None:
    """Raises UsageError if a source is given twice or is a folder inside another one."""
    by_path: dict[Path, str] = {}
    for name in names:
        path = Path(name).resolve()
        if path in by_path:
            raise UsageError(f"{name} is given twice.", "Give each source once.")
        by_path[path] = name
    for path, name in by_path.items():
        outer = next((by_path[parent] for parent in path.parents if parent in by_path), None)
        if outer is not None and path.is_dir():
            raise UsageError(f"{name} is inside {outer}.", "Give the outer folder only.")
