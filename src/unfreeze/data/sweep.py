"""One pass of threads over files: a verdict for each, and their pixels where these fit."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from unfreeze.data.crew import processors
from unfreeze.data.decode import decode, shrink
from unfreeze.data.holding import mean_bytes
from unfreeze.data.sources import Source
from unfreeze.data.store import PixelStore
from unfreeze.data.undecodable import Undecodable
from unfreeze.data.verdicts import UNKNOWN, UNUSABLE, Verdict, Verdicts
from unfreeze.errors import ResourceError
from unfreeze.runtime.console import Console

_CHUNK_BYTES = 8 * 2**20  # pixels that a task of the pool brings back, about
_CHUNK_FILES = 64

Pixels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


def sweep(
    source: Source,
    rows: Rows,
    verdicts: Verdicts,
    *,
    workers: int | None,
    store_budget: int,
    resize_to: int | None,
    console: Console,
) -> tuple[int, PixelStore | None]:
    """Decodes `rows`, notes and saves their verdicts: (files decoded, pixels of the usable).

    Pixels are held where the estimate fits `store_budget` bytes, and given up where the truth
    does not. Without them only rows of unknown verdict are decoded. What was found is saved also
    when the pass is interrupted.
    """
    store = _store(source, rows, verdicts, store_budget, resize_to)
    states = verdicts.states[rows]
    todo = rows[states != UNUSABLE] if store is not None else rows[states == UNKNOWN]
    if not len(todo):
        return 0, store
    judge = _Judge(source, resize_to, keep=store is not None)
    chunks = _chunks(todo, len(store.buffer) // len(rows) if store is not None else 0)
    try:
        with console.progress("checking pictures", len(todo)) as advance:
            for chunk, results in _in_order(judge, chunks, workers or processors()):
                for row, (verdict, pixels) in zip(chunk, results, strict=True):
                    verdicts.set(row, verdict)
                    if store is not None and pixels is not None:
                        store.add(row, pixels)
                if store is not None and store.used > store_budget:
                    store, judge.keep = None, False
                    console.say("The decoded pixels outgrew --store-budget; none are held.")
                advance(len(chunk))
    finally:
        _keep(verdicts, console)
    return len(todo), store


def _keep(verdicts: Verdicts, console: Console) -> None:
    try:
        verdicts.save()
    except (OSError, ResourceError) as error:
        # the run does not need it, only the next one would be quicker
        console.say(f"What the check found could not be kept for other runs: {error}")


class _Judge:
    """Decodes a chunk of rows; what threads run."""

    def __init__(self, source: Source, resize_to: int | None, *, keep: bool) -> None:
        self.source, self.resize_to, self.keep = source, resize_to, keep

    def __call__(self, chunk: list[int]) -> list[tuple[Verdict, Pixels | None]]:
        return [self._one(row) for row in chunk]

    def _one(self, row: int) -> tuple[Verdict, Pixels | None]:
        verdict, pixels = judged(self.source, row)
        held = self.keep and pixels is not None
        return verdict, shrink(pixels, self.resize_to) if held else None  # type: ignore[arg-type]


def judged(source: Source, row: int) -> tuple[Verdict, Pixels | None]:
    """A row's verdict, and its pixels where it is usable."""
    data = None
    try:
        data = source.read(row)
        pixels = decode(data, source.intensity)
    except Undecodable as error:
        # what reading found is about the disk or the archive, and may be mended
        return Verdict(0, 0, error.reason, error.detail, passing=data is None), None
    except OSError as error:
        detail = error.strerror or str(error)
        return Verdict(0, 0, "unreadable", detail, passing=True), None
    return Verdict(*pixels.shape[:2]), pixels


def _in_order(
    judge: _Judge, chunks: Iterator[list[int]], workers: int
) -> Iterator[tuple[list[int], list[tuple[Verdict, Pixels | None]]]]:
    """Chunks with their results, in order; only a few are under way, so memory stays bounded."""
    under_way: deque[tuple[list[int], Future[list[tuple[Verdict, Pixels | None]]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="check") as pool:
        try:
            for chunk in chunks:
                under_way.append((chunk, pool.submit(judge, chunk)))
                if len(under_way) > 2 * workers:
                    done, future = under_way.popleft()
                    yield done, future.result()
            while under_way:
                done, future = under_way.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _chunks(rows: Rows, mean_bytes: int) -> Iterator[list[int]]:
    size = max(1, min(_CHUNK_FILES, _CHUNK_BYTES // max(mean_bytes, 1)))
    size = max(1, min(size, len(rows) // (4 * processors())))
    for start in range(0, len(rows), size):
        yield rows[start : start + size].tolist()


def _store(
    source: Source, rows: Rows, verdicts: Verdicts, budget: int, resize_to: int | None
) -> PixelStore | None:
    """An empty store of the estimated size, or None where that is over the budget."""
    if budget <= 0 or not len(rows):
        return None
    estimate = mean_bytes(source, rows, verdicts, resize_to) * len(rows)
    if estimate > budget:
        return None
    capacity = min(budget, int(estimate * 1.02)) + 4096  # memory is taken only when written to
    return PixelStore(len(source), capacity=capacity, resize_to=resize_to)
