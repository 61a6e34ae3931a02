"""Builds a store of mapped pixels in processes side by side; what is there already is kept."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unfreeze.data.crew import WorkerLost, processors, shared_out
from unfreeze.data.decode import shrink
from unfreeze.data.mapped import MappedStore, Picture, Wanted, read_chunk, write_chunk
from unfreeze.data.sources import Source
from unfreeze.data.supervised import MEMORY, SECONDS, Lost, supervised
from unfreeze.data.sweep import judged
from unfreeze.data.verdicts import UNKNOWN, UNUSABLE, Verdict, Verdicts
from unfreeze.errors import ResourceError
from unfreeze.runtime.console import Console

_ABANDONED_SECONDS = 3600.0  # a half-written file older than that belongs to nobody
_SAVE_SECONDS = 30.0  # between savings of what was found out about the files


class _Filler:
    """Decodes the rows of a chunk, writes it, and says what it found; what each process does."""

    def __init__(self, want: Wanted, unusable: frozenset[int]) -> None:
        self.want, self.unusable = want, unusable

    def __call__(self, number: int) -> list[tuple[int, Verdict]]:
        found: list[tuple[int, Verdict]] = []
        write_chunk(self.want, number, self._pictures(number, found))
        return found

    def _pictures(self, number: int, found: list[tuple[int, Verdict]]) -> Iterator[Picture | None]:
        for row in self.want.part(number).tolist():
            if row in self.unusable:
                yield None
                continue
            verdict, pixels = judged(self.want.source, row)
            found.append((row, verdict))
            if pixels is None:
                yield None
            else:
                small = shrink(pixels, self.want.resize_to)
                yield Picture(small, (verdict.height, verdict.width))


def mapped(
    want: Wanted, verdicts: Verdicts, *, workers: int | None, console: Console
) -> tuple[int, MappedStore]:
    """(files decoded, the store): chunks that are not there are made, in `workers` processes.

    Verdicts of what is decoded are noted and saved. A process that a file brings down takes
    nothing with it: the files that are left are then met one by one, and that one is left out.
    ResourceError where the disk is full, or where processes keep ending.
    """
    _sweep_up(want.folder)
    missing = _missing(want, verdicts, console)
    decoded, count = 0, workers or processors()
    for attempt in range(2):
        if not missing:
            break
        try:
            decoded += _fill(want, missing, verdicts, count, console)
        except WorkerLost as error:
            if attempt:
                raise ResourceError(
                    f"The decoded pictures could not be kept on the disk: {error}.",
                    "Use fewer --workers, or --store off.",
                ) from error
            decoded += _checked(want, _missing(want, verdicts, console), verdicts, count, console)
        missing = _missing(want, verdicts, console)
    return decoded, MappedStore(want)


def _fill(
    want: Wanted, missing: list[int], verdicts: Verdicts, workers: int, console: Console
) -> int:
    bad = frozenset(want.rows[verdicts.states[want.rows] == UNUSABLE].tolist())
    decoded, saved = 0, time.monotonic()
    try:
        with console.progress("keeping decoded pictures", len(want.rows)) as advance:
            advance(len(want.rows) - sum(len(want.part(number)) for number in missing))
            for number, found in shared_out(_Filler(want, bad), missing, workers):
                for row, verdict in found:
                    verdicts.set(row, verdict)
                decoded += len(found)
                advance(len(want.part(number)))
                if time.monotonic() - saved > _SAVE_SECONDS:
                    verdicts.save()
                    saved = time.monotonic()
    finally:
        verdicts.save()
    return decoded


class _Judging:
    """The verdict of a row; what each watched process does."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, row: int) -> Verdict:
        return judged(self.source, row)[0]


def _checked(
    want: Wanted, missing: list[int], verdicts: Verdicts, workers: int, console: Console
) -> int:
    """The files of the missing chunks met one by one: who brings a process down is known then."""
    rows = np.concatenate([want.part(number) for number in missing])
    todo = rows[verdicts.states[rows] != UNUSABLE].tolist()
    watched = supervised(_Judging(want.source), todo, workers, seconds=SECONDS, memory=MEMORY)
    with console.progress("checking pictures one by one", len(todo)) as advance:
        for row, found in watched:
            if isinstance(found, Lost):
                found = Verdict(0, 0, found.kind, found.detail)
            verdicts.set(row, found)
            advance(1)
    verdicts.save()
    return len(todo)


def _missing(want: Wanted, verdicts: Verdicts, console: Console) -> list[int]:
    """Chunks that are not there; of the others the sizes of their pictures are noted."""
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
            console.say(f"Kept pixels are damaged and are decoded again: {path}: {error}.")
            missing.append(number)
    return missing


def _sweep_up(folder: Path) -> None:
    """Removes what killed processes left half-written."""
    for file in folder.glob(".*.tmp"):
        if time.time() - file.stat().st_mtime > _ABANDONED_SECONDS:
            file.unlink(missing_ok=True)
