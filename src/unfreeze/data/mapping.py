"""Builds a store of mapped pixels in processes side by side; what is there already is kept."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unfreeze.data.judging import Judge, lost
from unfreeze.data.mapped import MappedStore, StoredImage, Wanted, read_chunk, writing
from unfreeze.data.supervised import MEMORY, Lost, supervised
from unfreeze.data.verdicts import UNKNOWN, UNUSABLE, Verdict, Verdicts
from unfreeze.errors import ResourceError
from unfreeze.runtime.console import Console
from unfreeze.runtime.threads import processors

_ABANDONED_SECONDS = 3600.0  # a half-written file older than that belongs to nobody
_SECONDS = 120.0  # for one file, and for bringing a chunk to a slow disk
_SAVE_SECONDS = 30.0  # between savings of what was found out about the files


class _Chunk(NamedTuple):
    """A chunk to make, and those of its rows that are known to give nothing."""

    number: int
    unusable: frozenset[int]


class _Filler:
    """Decodes the rows of a chunk and writes it; what each process does.

    Tells (row, None) before it looks at a row and (row, verdict) after that.
    """

    def __init__(self, want: Wanted, *, sign: bool) -> None:
        self.want, self.judge = want, Judge(want.source, want.resize_to, keep=True, sign=sign)

    def __call__(self, chunk: _Chunk) -> Iterator[tuple[int, Verdict | None]]:
        with writing(self.want, chunk.number) as add:
            for row in self.want.part(chunk.number).tolist():
                if row in chunk.unusable:
                    add(None)
                    continue
                yield row, None
                verdict, pixels = self.judge(row)
                yield row, verdict
                size = verdict.height, verdict.width
                add(None if pixels is None else StoredImage(pixels, size))


def mapped(
    want: Wanted, verdicts: Verdicts, *, workers: int | None, console: Console
) -> tuple[int, MappedStore]:
    """(files decoded, the store): chunks that are not there are made, in `workers` processes.

    Verdicts of what is decoded are noted and saved. A file that brings its process down, or is
    not done in time, is left out, and its chunk is made again without it. ResourceError where the
    disk is full, or where processes end for another reason.
    """
    _sweep_up(want.folder)
    decoded = 0
    if missing := _missing(want, verdicts, console):
        decoded = _Building(want, verdicts).build(missing, workers or processors(), console)
    return decoded, MappedStore(want)


class _Building:
    """The chunks that are being made: what is known of their rows, and what comes next."""

    def __init__(self, want: Wanted, verdicts: Verdicts) -> None:
        self.want, self.verdicts = want, verdicts
        self.met: set[int] = set()  # rows that were decoded, or cost a process
        self.at: dict[int, int] = {}  # chunk: the row that its maker looks at

    def build(self, missing: list[int], workers: int, console: Console) -> int:
        """Makes the chunks; how many files were decoded."""
        todo = deque(self._chunk(number) for number in missing)
        saved = time.monotonic()
        try:
            with console.progress("caching decoded images", len(self.want.rows)) as advance:
                advance(len(self.want.rows) - self._left(todo))
                for chunk, found in self._made(todo, workers, console):
                    before = len(self.met)
                    if isinstance(found, Lost):
                        self._lost(chunk, found)
                        todo.append(self._chunk(chunk.number))
                    else:
                        self._note(chunk, *found)
                    advance(len(self.met) - before)
                    if time.monotonic() - saved > _SAVE_SECONDS:
                        self.verdicts.save(signatures=False)  # large: at the end
                        saved = time.monotonic()
        finally:
            self.verdicts.save()
        return len(self.met)

    def _made(
        self, todo: deque[_Chunk], workers: int, console: Console
    ) -> Iterator[tuple[_Chunk, Any]]:
        filler = _Filler(self.want, sign=self.verdicts.signatures is not None)
        how: dict[str, Any] = {"seconds": _SECONDS, "memory": MEMORY, "warn": console.warn}
        return supervised(filler, todo, workers, ahead=1, **how)

    def _note(self, chunk: _Chunk, row: int, verdict: Verdict | None) -> None:
        if verdict is None:
            self.at[chunk.number] = row
            return
        del self.at[chunk.number]
        self.verdicts.set(row, verdict)
        self.met.add(row)

    def _lost(self, chunk: _Chunk, found: Lost) -> None:
        row = self.at.pop(chunk.number, None)
        if row is None:
            raise ResourceError(
                f"The decoded images could not be cached on disk: {found.detail}.",
                "Use fewer --workers, or --store off.",
            )
        self.verdicts.set(row, lost(found))
        self.met.add(row)

    def _left(self, todo: Iterable[_Chunk]) -> int:
        return sum(len(self.want.part(chunk.number)) - len(chunk.unusable) for chunk in todo)

    def _chunk(self, number: int) -> _Chunk:
        rows = self.want.part(number)
        return _Chunk(number, frozenset(rows[self.verdicts.states[rows] == UNUSABLE].tolist()))


def _missing(want: Wanted, verdicts: Verdicts, console: Console) -> list[int]:
    """Chunks that are not there; of the others the sizes of their images are noted."""
    missing = []
    for number in range(want.chunks):
        try:
            shapes, rows = read_chunk(want, number)[1], want.part(number)
            for place in np.flatnonzero((verdicts.states[rows] == UNKNOWN) & (shapes[:, 0] > 0)):
                verdicts.set(int(rows[place]), Verdict(*shapes[place, 2:].tolist()))
        except (FileNotFoundError, NotADirectoryError):
            missing.append(number)
        except (OSError, ValueError) as error:
            path = want.path(number)
            console.warn(f"A pixel cache file is damaged and will be rebuilt: {path}: {error}.")
            missing.append(number)
    return missing


def _sweep_up(folder: Path) -> None:
    """Removes what killed processes left half-written."""
    for file in folder.glob(".*.tmp"):
        if time.time() - file.stat().st_mtime > _ABANDONED_SECONDS:
            file.unlink(missing_ok=True)
