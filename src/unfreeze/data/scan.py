"""Every file decoded once before the first step: which images can be used, and why not."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.dataset import ImageDataset
from unfreeze.data.duplicates import Signatures
from unfreeze.data.holding import NOTHING, Holding
from unfreeze.data.index import Index
from unfreeze.data.mapped import MappedStore, Wanted, is_ours, pixels_folder, wanted
from unfreeze.data.mapping import mapped
from unfreeze.data.room import make_room
from unfreeze.data.sources import Source
from unfreeze.data.store import PixelStore
from unfreeze.data.sweep import sweep
from unfreeze.data.verdicts import UNKNOWN, UNUSABLE, Verdicts
from unfreeze.errors import DataError, ResourceError
from unfreeze.runtime.console import Console, Quiet
from unfreeze.runtime.tables import write_csv

Mode = Literal["full", "sample", "off"]
SAMPLE = 1_000  # files that --scan sample decodes
REFUSE_ABOVE = 0.5  # share of unusable files above which a run does not start

Rows = npt.NDArray[np.int64]


class Problem(NamedTuple):
    """A file and what is wrong with it; `left_out` where it cannot be used."""

    path: str
    reason: str
    detail: str
    left_out: bool


@dataclass(frozen=True, eq=False)
class Scan:
    """What the check found, by position of the index it was given.

    `usable`: positions, ascending. `heights`, `widths`: pixels after orientation, 0 where unknown
    or unusable. `decoded`: files decoded in this call; `known`: files whose verdict was there
    already. `store`: pixels of all usable images, or None. `signatures`: by position too, where
    they were asked for; images that were not looked at have none that is known.
    """

    index: Index
    usable: Rows
    problems: list[Problem]
    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    mode: Mode
    decoded: int
    known: int
    seconds: float
    store: PixelStore | MappedStore | None
    resize_to: int | None
    signatures: Signatures | None = None

    def images(self) -> ImageDataset:
        """The usable images, in the order of the index, from the store where there is one."""
        return ImageDataset(self.index.take(self.usable), self.store, resize_to=self.resize_to)


def check(  # noqa: PLR0913  (all but one keyword-only)
    index: Index,
    *,
    workers: int | None = None,
    store_budget: int = 0,
    hold: Holding | None = None,
    resize_to: int | None = None,
    console: Console | None = None,
    mode: Mode = "full",
    seed: int = 0,
    refuse_above: float | None = REFUSE_ABOVE,
    sign: bool = False,
) -> Scan:
    """Decodes what was never decoded before, and holds the pixels where they fit.

    `store_budget` is in bytes: if the pixels (shorter side at most `resize_to`) are estimated to
    fit, they are kept, which takes one decoding pass even where every verdict is known from an
    earlier run; `hold` says where instead. Without a store nothing is read twice. `workers` are
    watched processes: a decoder that dies, hangs or wants too much memory costs its file alone.
    Mode `sample` decodes SAMPLE seeded files, `off` none; neither builds a store, both say so.
    More than `refuse_above` of the checked files unusable is a DataError (None: never). `sign`:
    the signatures that near-duplicates share are made of the same pixels, and kept beside the
    verdicts.
    """
    console = console or Quiet()
    started = time.perf_counter()
    verdicts = Verdicts(index.source, sign=sign)
    rows = index.rows[to_check(len(index), mode, seed)]
    known = int((verdicts.states[rows] != UNKNOWN).sum())
    looking = _Looking(index.source, rows, verdicts, resize_to, workers, console)
    if hold is None:
        hold = Holding("memory", 0, store_budget, "as requested")
    decoded, store = looking.look(hold if mode == "full" else NOTHING)
    _say(console, mode, len(index))
    looked_at = np.zeros(len(index.source), bool)
    looked_at[rows] = True  # what an earlier run knew of others does not change this one
    bad = (verdicts.states == UNUSABLE) & looked_at
    if refuse_above is not None:
        _refuse(index, rows[bad[rows]], len(rows), verdicts, refuse_above)
    sizes = np.where(bad[:, None], 0, verdicts.sizes)[index.rows]
    return Scan(
        index=index,
        usable=np.flatnonzero(~bad[index.rows]),
        problems=[_problem(index, int(row), verdicts) for row in index.rows[bad[index.rows]]],
        heights=np.ascontiguousarray(sizes[:, 0]),
        widths=np.ascontiguousarray(sizes[:, 1]),
        mode=mode,
        decoded=decoded,
        known=known,
        seconds=time.perf_counter() - started,
        store=store,
        resize_to=resize_to,
        signatures=None if verdicts.signatures is None else verdicts.signatures[index.rows],
    )


@dataclass(frozen=True, eq=False)
class _Looking:
    """Rows to decode, and what that takes."""

    source: Source
    rows: Rows
    verdicts: Verdicts
    resize_to: int | None
    workers: int | None
    console: Console

    def look(self, hold: Holding) -> tuple[int, PixelStore | MappedStore | None]:
        """(files decoded, their pixels where `hold` says); the verdicts are noted."""
        before, there = self._on_disk(hold) if hold.place == "disk" else (0, None)
        decoded, here = sweep(
            self.source,
            self.rows,
            self.verdicts,
            workers=self.workers,
            store_budget=hold.budget if hold.place == "memory" else 0,
            resize_to=self.resize_to,
            console=self.console,
        )
        return before + decoded, here or there

    def _on_disk(self, hold: Holding) -> tuple[int, MappedStore | None]:
        """(files decoded, their pixels mapped); where they cannot be kept it is said."""
        if not len(self.rows):
            return 0, None
        want = wanted(self.source, self.rows, self.resize_to, hold.bytes)
        if not want.folder.exists():
            self._make_room(want, hold)
        try:
            return mapped(want, self.verdicts, workers=self.workers, console=self.console)
        except (OSError, ResourceError) as error:
            if hold.asked:
                raise
            self.console.warn(f"Decoded images are not cached on disk: {error}")
            return 0, None

    def _make_room(self, want: Wanted, hold: Holding) -> None:
        around = pixels_folder()
        removed = make_room(around, hold.budget, hold.bytes, ours=is_ours, spared=[want.key])
        for name in removed:
            self.console.say(f"Removed old pixel cache {name} to free space (--store-budget).")


def write_problems_csv(path: Path, problems: Iterable[Problem]) -> None:
    """`path,reason,detail,left_out`, whole or not at all."""
    rows = ((*problem[:3], str(problem.left_out).lower()) for problem in problems)
    write_csv(path, Problem._fields, rows)


def to_check(count: int, mode: Mode, seed: int) -> Rows:
    """Which of `count` images are decoded: all, SAMPLE seeded ones, or none; ascending."""
    if mode == "off":
        return np.arange(0)
    if mode == "full" or count <= SAMPLE:
        return np.arange(count)
    keys = np.random.PCG64(seed).random_raw(count)
    return np.sort(np.argsort(keys, kind="stable")[:SAMPLE])


def _say(console: Console, mode: Mode, count: int) -> None:
    if mode == "off":
        console.say(f"No images were checked before training (--scan off): {count:,} images.")
    elif mode == "sample" and count > SAMPLE:
        console.say(
            f"{SAMPLE:,} of {count:,} images were checked (--scan sample); "
            "a broken image among the others stops the run when it is read."
        )


def _problem(index: Index, row: int, verdicts: Verdicts) -> Problem:
    reason, detail = verdicts.reasons[row]
    return Problem(index.source.names[row], reason, detail, left_out=True)


def _refuse(index: Index, bad: Rows, checked: int, verdicts: Verdicts, above: float) -> None:
    if len(bad) <= above * checked:
        return
    first = _problem(index, int(bad[0]), verdicts)
    raise DataError(
        f"{len(bad):,} of {checked:,} images in {index.source.where} cannot be decoded "
        f"(first: {first.path}, {first.reason}: {first.detail}).",
        "Remove the broken images, or download the dataset again.",
    )
