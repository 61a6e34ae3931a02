"""One pass over the files in worker processes: their verdicts and the in-memory pixel cache."""

from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.holding import mean_bytes
from unfreeze.data.judging import Judge, lost
from unfreeze.data.sources import Source
from unfreeze.data.store import PixelStore
from unfreeze.data.supervised import Lost
from unfreeze.data.verdicts import UNUSABLE, Verdict, Verdicts
from unfreeze.data.watched import watched
from unfreeze.errors import ResourceError
from unfreeze.runtime.console import Advance, Console

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
    """Decodes `rows` and saves their verdicts: (number of decoded files, pixel cache or None).

    Pixels are cached if their estimated size is at most `store_budget` bytes, unless their actual
    size exceeds it. Without a cache only rows with incomplete verdicts are decoded. Verdicts are
    also saved when the pass is interrupted.
    """
    store = _empty_cache(source, rows, verdicts, store_budget, resize_to)
    usable = verdicts.states[rows] != UNUSABLE
    todo = rows[usable] if store is not None else rows[verdicts.lacking(rows)]
    if not len(todo):
        return 0, store
    try:
        with console.progress("checking images", len(todo)) as advance:
            run = _Pass(source, verdicts, advance, {"workers": workers, "warn": console.warn})
            if store is not None and not run.check_and_cache(todo, store, store_budget):
                store = None
                console.warn("The decoded pixels exceed --store-budget; the pixel cache is off.")
            if store is None:
                run.check(todo)
    finally:
        _save(verdicts, console)
    return len(todo), store


def _save(verdicts: Verdicts, console: Console) -> None:
    try:
        verdicts.save()
    except (OSError, ResourceError) as error:
        # the cache only makes the next run faster
        console.warn(f"The results of the check could not be cached for later runs: {error}")


class _Pass:
    """Checks rows and stores their verdicts, each row once."""

    def __init__(
        self, source: Source, verdicts: Verdicts, advance: Advance, options: dict[str, Any]
    ) -> None:
        self.source, self.verdicts, self.options = source, verdicts, options
        self.advance, self.done = advance, np.zeros(len(source), bool)
        self.sign = verdicts.signatures is not None

    def check(self, rows: Rows) -> None:
        """Checks the rows that were not checked yet, without caching pixels."""
        judge = Judge(self.source, None, keep=False, sign=self.sign)
        remaining = rows[~self.done[rows]].tolist()
        for row, result in watched(self.source, judge, remaining, **self.options):
            self._record(row, result)

    def check_and_cache(self, rows: Rows, store: PixelStore, budget: int) -> bool:
        """Checks rows and caches their pixels; stops with False if they exceed `budget` bytes."""
        judge = Judge(self.source, store.resize_to, keep=True, sign=self.sign)
        for row, result in watched(self.source, judge, rows.tolist(), **self.options):
            if not isinstance(result, Lost) and result[1] is not None:
                store.add(row, result[1])
            self._record(row, result)
            if store.used > budget:
                return False
        return True

    def _record(
        self, row: int, result: tuple[Verdict, npt.NDArray[np.uint8] | None] | Lost
    ) -> None:
        self.verdicts.set(row, lost(result) if isinstance(result, Lost) else result[0])
        self.done[row] = True
        self.advance(1)


def _empty_cache(
    source: Source, rows: Rows, verdicts: Verdicts, budget: int, resize_to: int | None
) -> PixelStore | None:
    """An empty pixel cache of the estimated size, or None if that exceeds the budget."""
    if budget <= 0 or not len(rows):
        return None
    estimate = mean_bytes(source, rows, verdicts, resize_to) * len(rows)
    if estimate > budget:
        return None
    capacity = min(budget, int(estimate * 1.02)) + 4096  # memory is taken only when written to
    return PixelStore(len(source), capacity=capacity, resize_to=resize_to)
