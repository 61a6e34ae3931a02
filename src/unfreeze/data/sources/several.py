"""Several sources as one: the rows of each in turn, under the name of the source."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt

from unfreeze.data.sources.source import Source
from unfreeze.errors import UsageError
from unfreeze.text import as_text


class SeveralSource(Source):
    """The rows of `parts`, one part after the other; names begin with that of their source.

    What folders or lists say, and what people should know, is said by the parts.
    """

    kind = "several"

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = tuple(parts)
        self.where = ", ".join(part.where for part in parts)
        self.titles = titles([as_text(part.where) for part in parts])
        self.names = [
            f"{title}/{name}"
            for title, part in zip(self.titles, parts, strict=True)
            for name in part.names
        ]
        self.sizes: npt.NDArray[np.int64] = np.concatenate([part.sizes for part in parts])
        self.starts = np.cumsum([0, *(len(part) for part in parts)])[:-1].tolist()
        self.skipped = sum(part.skipped for part in parts)

    def read(self, row: int) -> bytes | npt.NDArray[np.uint8]:
        """What the row's own source reads."""
        part, inner = self._inside(row)
        return part.read(inner)

    def head(self, row: int, count: int) -> bytes:
        """The first bytes, from the row's own source."""
        part, inner = self._inside(row)
        return part.head(inner, count)

    def fingerprint(self) -> str:
        """The names and fingerprints of all, in order."""
        told = [
            f"{title} {part.fingerprint()}"
            for title, part in zip(self.titles, self.parts, strict=True)
        ]
        return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()

    def column(self, name: str) -> list[str] | None:
        """The column of the lists among them; empty for rows of the others."""
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

    def _inside(self, row: int) -> tuple[Source, int]:
        place = bisect_right(self.starts, row) - 1
        return self.parts[place], row - self.starts[place]


def titles(places: Sequence[str]) -> list[str]:
    """The last part of each path, with as many folders before it as tell them apart."""
    paths = [PurePath(place).parts or (place,) for place in places]
    for depth in range(1, max(map(len, paths)) + 1):
        found = ["/".join(path[-depth:]) for path in paths]
        if len(set(found)) == len(found):
            return found
    raise UsageError(f"{places[0]} is named twice.", "Name each source of images once.")


def refuse_overlap(places: Sequence[str]) -> None:
    """Raises UsageError where a source is named twice, or a folder inside another one."""
    found: dict[Path, str] = {}
    for place in places:
        path = Path(place).resolve()
        if path in found:
            raise UsageError(f"{place} is named twice.", "Name each source of images once.")
        found[path] = place
    for path, place in found.items():
        around = next((found[folder] for folder in path.parents if folder in found), None)
        if around is not None and path.is_dir():
            raise UsageError(f"{place} lies inside {around}.", "Name the outer folder alone.")
