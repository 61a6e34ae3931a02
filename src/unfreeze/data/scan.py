"""The check before training: decodes images, finds unusable ones, fills the pixel cache."""

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
SAMPLE = 1_000  # number of images that --scan sample decodes
REFUSE_ABOVE = 0.5  # share of unusable files above which a run does not start

Rows = npt.NDArray[np.int64]


class Problem(NamedTuple):
    """A problem of an image; `left_out`: it cannot be used."""

    path: str
    reason: str
    detail: str
    left_out: bool


@dataclass(frozen=True, eq=False)
class Scan:
    """Results of the check, by position in `index`.

    `usable`: ascending positions. `heights`, `widths`: in pixels after orientation, 0 if unknown or
    unusable. `decoded`: number of files decoded in this call; `known`: number of files with a
    cached verdict. `store`: pixel cache of all usable images, or None. `signatures`: perceptual
    hashes by position if requested; not known for images that were not checked.
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
        """The dataset of usable images, in the order of the index."""
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
    """Decodes images without a cached verdict, and fills the pixel cache.

    `store_budget`: limit of an in-memory pixel cache in bytes; if the pixels (shorter side at most
    `resize_to`) are estimated to fit, all images are decoded, even with cached verdicts. `hold`
    chooses the cache instead. `workers`: number of worker processes; a file that crashes its
    decoder, hangs or needs too much memory is unusable. Mode `sample` decodes SAMPLE random files,
    `off` none; both build no cache and print a note. `refuse_above`: DataError if a larger share of
    the checked files is unusable (None: never). `sign`: also compute perceptual hashes.
    """
    console = console or Quiet()
    started = time.perf_counter()
    verdicts = Verdicts(index.source, sign=sign)
    rows = index.rows[to_check(len(index), mode, seed)]
    known = int((verdicts.states[rows] != UNKNOWN).sum())
    run_check = _Check(index.source, rows, verdicts, resize_to, workers, console)
    if hold is None:
        hold = Holding("memory", 0, store_budget, "as requested")
    decoded, store = run_check.run(hold if mode == "full" else NOTHING)
    _print_mode(console, mode, len(index))
    was_checked = np.zeros(len(index.source), bool)
    was_checked[rows] = True  # cached verdicts of other files must not change this run
    unusable = (verdicts.states == UNUSABLE) & was_checked
    if refuse_above is not None:
        _refuse_if_unusable(index, rows[unusable[rows]], len(rows), verdicts, refuse_above)
    sizes = np.where(unusable[:, None], 0, verdicts.sizes)[index.rows]
    return Scan(
        index=index,
        usable=np.flatnonzero(~unusable[index.rows]),
        problems=[_problem(index, int(row), verdicts) for row in index.rows[unusable[index.rows]]],
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
class _Check:
    """The arguments of a check."""

    source: Source
    rows: Rows
    verdicts: Verdicts
    resize_to: int | None
    workers: int | None
    console: Console

    def run(self, hold: Holding) -> tuple[int, PixelStore | MappedStore | None]:
        """(number of decoded files, the pixel cache or None); fills the verdicts."""
        decoded_for_disk, disk_cache = (
            self._build_disk_cache(hold) if hold.place == "disk" else (0, None)
        )
        decoded, memory_cache = sweep(
            self.source,
            self.rows,
            self.verdicts,
            workers=self.workers,
            store_budget=hold.budget if hold.place == "memory" else 0,
            resize_to=self.resize_to,
            console=self.console,
        )
        return decoded_for_disk + decoded, memory_cache or disk_cache

    def _build_disk_cache(self, hold: Holding) -> tuple[int, MappedStore | None]:
        """(number of decoded files, the cache on disk or None with a warning)."""
        if not len(self.rows):
            return 0, None
        want = wanted(self.source, self.rows, self.resize_to, hold.bytes)
        if not want.folder.exists():
            self._evict_old_caches(want, hold)
        try:
            return mapped(want, self.verdicts, workers=self.workers, console=self.console)
        except (OSError, ResourceError) as error:
            if hold.asked:
                raise
            self.console.warn(f"Decoded images are not cached on disk: {error}")
            return 0, None

    def _evict_old_caches(self, want: Wanted, hold: Holding) -> None:
        around = pixels_folder()
        removed = make_room(around, hold.budget, hold.bytes, ours=is_ours, spared=[want.key])
        for name in removed:
            self.console.say(f"Removed old pixel cache {name} to free space (--store-budget).")


def write_problems_csv(path: Path, problems: Iterable[Problem]) -> None:
    """Write problems.csv with the columns `path,reason,detail,left_out`, atomically."""
    rows = ((*problem[:3], str(problem.left_out).lower()) for problem in problems)
    write_csv(path, Problem._fields, rows)


def to_check(count: int, mode: Mode, seed: int) -> Rows:
    """Ascending positions of the images to decode: all, SAMPLE random ones, or none."""
    if mode == "off":
        return np.arange(0)
    if mode == "full" or count <= SAMPLE:
        return np.arange(count)
    keys = np.random.PCG64(seed).random_raw(count)
    return np.sort(np.argsort(keys, kind="stable")[:SAMPLE])


def _print_mode(console: Console, mode: Mode, count: int) -> None:
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


def _refuse_if_unusable(
    index: Index, unusable: Rows, checked: int, verdicts: Verdicts, limit: float
) -> None:
    if len(unusable) <= limit * checked:
        return
    first = _problem(index, int(unusable[0]), verdicts)
    raise DataError(
        f"{len(unusable):,} of {checked:,} images in {index.source.where} cannot be decoded "
        f"(first: {first.path}, {first.reason}: {first.detail}).",
        "Remove the broken images, or download the dataset again.",
    )
