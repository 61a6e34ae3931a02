"""Builds the pixel cache on disk in worker processes; existing chunks are reused."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from unfreeze.data.cache.memory_map import (
    MappedPixelCache,
    PixelCacheKey,
    StoredImage,
    read_chunk,
    write_chunk,
)
from unfreeze.data.validate.decode_check import DecodeCheck, lost_verdict
from unfreeze.data.validate.verdicts import UNKNOWN, UNUSABLE, FileVerdict, VerdictCache
from unfreeze.data.validate.worker_pool import MEMORY, LostTask, run_in_workers
from unfreeze.errors import ResourceError
from unfreeze.runtime.console import Console
from unfreeze.runtime.threads import processors

_SECONDS = 120.0  # limit for one file, and for writing a chunk to a slow disk
_SAVE_SECONDS = 30.0  # between saves of the verdicts


class _Chunk(NamedTuple):
    """A chunk to build, and its rows that are known to be unusable."""

    number: int
    unusable: frozenset[int]


class _ChunkWriter:
    """Decodes the rows of a chunk and writes it; runs in worker processes.

    Yields (row, None) before it decodes a row, and (row, verdict) afterwards.
    """

    def __init__(self, want: PixelCacheKey, *, sign: bool) -> None:
        self.want, self.judge = want, DecodeCheck(want.source, want.resize_to, keep=True, sign=sign)

    def __call__(self, chunk: _Chunk) -> Iterator[tuple[int, FileVerdict | None]]:
        with write_chunk(self.want, chunk.number) as add:
            for row in self.want.part(chunk.number).tolist():
                if row in chunk.unusable:
                    add(None)
                    continue
                yield row, None
                verdict, pixels = self.judge(row)
                yield row, verdict
                size = verdict.height, verdict.width
                add(None if pixels is None else StoredImage(pixels, size))


def build_mapped_cache(
    want: PixelCacheKey, verdicts: VerdictCache, *, workers: int | None, console: Console
) -> tuple[int, MappedPixelCache]:
    """(number of decoded files, the cache); builds missing chunks in `workers` processes.

    Saves the verdicts of decoded files. A file that crashes its process or exceeds the time limit
    is unusable, and its chunk is built again without it. ResourceError if the disk is full, or if
    processes end for another reason.
    """
    want.store.remove_abandoned()
    decoded = 0
    if missing := _missing(want, verdicts, console):
        decoded = _Build(want, verdicts).build(missing, workers or processors(), console)
    return decoded, MappedPixelCache(want)


class _Build:
    """The state of a build: verdicts of rows, and the row that each worker is at."""

    def __init__(self, want: PixelCacheKey, verdicts: VerdictCache) -> None:
        self.want, self.verdicts = want, verdicts
        self.processed: set[int] = set()  # rows that were decoded, or crashed a process
        self.current_rows: dict[int, int] = {}  # chunk number: the row that its worker decodes

    def build(self, missing: list[int], workers: int, console: Console) -> int:
        """Builds the chunks; returns the number of decoded files."""
        todo = deque(self._chunk(number) for number in missing)
        saved = time.monotonic()
        try:
            with console.progress("caching decoded images", len(self.want.rows)) as advance:
                advance(len(self.want.rows) - self._rows_to_decode(todo))
                for chunk, result in self._results(todo, workers, console):
                    before = len(self.processed)
                    if isinstance(result, LostTask):
                        self._record_lost(chunk, result)
                        todo.append(self._chunk(chunk.number))
                    else:
                        self._record(chunk, *result)
                    advance(len(self.processed) - before)
                    if time.monotonic() - saved > _SAVE_SECONDS:
                        self.verdicts.save(
                            signatures=False
                        )  # they are large: saved once at the end
                        saved = time.monotonic()
        finally:
            self.verdicts.save()
        return len(self.processed)

    def _results(
        self, todo: deque[_Chunk], workers: int, console: Console
    ) -> Iterator[tuple[_Chunk, Any]]:
        filler = _ChunkWriter(self.want, sign=self.verdicts.signatures is not None)
        options: dict[str, Any] = {"seconds": _SECONDS, "memory": MEMORY, "warn": console.warn}
        return run_in_workers(filler, todo, workers, ahead=1, **options)

    def _record(self, chunk: _Chunk, row: int, verdict: FileVerdict | None) -> None:
        if verdict is None:
            self.current_rows[chunk.number] = row
            return
        del self.current_rows[chunk.number]
        self.verdicts.set(row, verdict)
        self.processed.add(row)

    def _record_lost(self, chunk: _Chunk, failure: LostTask) -> None:
        row = self.current_rows.pop(chunk.number, None)
        if row is None:
            raise ResourceError(
                f"The decoded images could not be cached on disk: {failure.detail}.",
                "Use fewer --workers, or --store off.",
            )
        self.verdicts.set(row, lost_verdict(failure))
        self.processed.add(row)

    def _rows_to_decode(self, todo: Iterable[_Chunk]) -> int:
        return sum(len(self.want.part(chunk.number)) - len(chunk.unusable) for chunk in todo)

    def _chunk(self, number: int) -> _Chunk:
        rows = self.want.part(number)
        return _Chunk(number, frozenset(rows[self.verdicts.states[rows] == UNUSABLE].tolist()))


def _missing(want: PixelCacheKey, verdicts: VerdictCache, console: Console) -> list[int]:
    """Numbers of missing chunks; verdicts get the image sizes of the others."""
    chunks, damaged = want.store.intact(lambda number: read_chunk(want, number).shapes)
    for message in damaged:
        console.warn(f"A pixel cache file is damaged and will be rebuilt: {message}.")
    for number, shapes in chunks.items():
        rows = want.part(number)
        for position in np.flatnonzero((verdicts.states[rows] == UNKNOWN) & (shapes[:, 0] > 0)):
            verdicts.set(int(rows[position]), FileVerdict(*shapes[position, 2:].tolist()))
    return [number for number in range(want.store.chunks) if number not in chunks]
