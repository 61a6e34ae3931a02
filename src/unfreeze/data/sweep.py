"""One pass over files in watched processes: a verdict for each, and their pixels where they fit."""

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
    """Decodes `rows`, notes and saves their verdicts: (files decoded, pixels of the usable).

    Pixels are held where the estimate fits `store_budget` bytes, and given up where the truth
    does not. Without them only rows are decoded of which `verdicts` lacks something. What was
    found is saved also when the pass is interrupted.
    """
    store = _store(source, rows, verdicts, store_budget, resize_to)
    usable = verdicts.states[rows] != UNUSABLE
    todo = rows[usable] if store is not None else rows[verdicts.lacking(rows)]
    if not len(todo):
        return 0, store
    try:
        with console.progress("checking images", len(todo)) as advance:
            one = _Pass(source, verdicts, advance, {"workers": workers, "warn": console.warn})
            if store is not None and not one.holding(todo, store, store_budget):
                store = None
                console.warn("The decoded pixels exceed --store-budget; the pixel cache is off.")
            if store is None:
                one.looking(todo)
    finally:
        _keep(verdicts, console)
    return len(todo), store


def _keep(verdicts: Verdicts, console: Console) -> None:
    try:
        verdicts.save()
    except (OSError, ResourceError) as error:
        # the run does not need it, only the next one would be quicker
        console.warn(f"The results of the check could not be cached for later runs: {error}")


class _Pass:
    """Judges rows and notes what was found, each row once."""

    def __init__(
        self, source: Source, verdicts: Verdicts, advance: Advance, how: dict[str, Any]
    ) -> None:
        self.source, self.verdicts, self.how = source, verdicts, how
        self.advance, self.done = advance, np.zeros(len(source), bool)
        self.sign = verdicts.signatures is not None

    def looking(self, rows: Rows) -> None:
        """Judges those of `rows` that were not met yet."""
        judge = Judge(self.source, None, keep=False, sign=self.sign)
        left = rows[~self.done[rows]].tolist()
        for row, found in watched(self.source, judge, left, **self.how):
            self._note(row, found)

    def holding(self, rows: Rows, store: PixelStore, budget: int) -> bool:
        """Puts the pixels into `store`; False, and no further, where they outgrow `budget`."""
        judge = Judge(self.source, store.resize_to, keep=True, sign=self.sign)
        for row, found in watched(self.source, judge, rows.tolist(), **self.how):
            if not isinstance(found, Lost) and found[1] is not None:
                store.add(row, found[1])
            self._note(row, found)
            if store.used > budget:
                return False
        return True

    def _note(self, row: int, found: tuple[Verdict, npt.NDArray[np.uint8] | None] | Lost) -> None:
        self.verdicts.set(row, lost(found) if isinstance(found, Lost) else found[0])
        self.done[row] = True
        self.advance(1)


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
