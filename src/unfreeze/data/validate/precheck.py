"""The check before training: decodes images, finds unusable ones, fills the pixel cache."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.cache.builder import build_mapped_cache
from unfreeze.data.cache.chunk_store import evict
from unfreeze.data.cache.folder import PIXEL_CACHE
from unfreeze.data.cache.memory_map import MappedPixelCache, pixel_cache_key
from unfreeze.data.cache.policy import NO_PIXEL_CACHE, MemoryPixelCache, PixelCachePlan, mean_bytes
from unfreeze.data.index.index import Index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.sources.source import Source
from unfreeze.data.validate.decode_check import DecodeCheck, lost_verdict
from unfreeze.data.validate.duplicates import Signatures
from unfreeze.data.validate.verdicts import UNKNOWN, UNUSABLE, FileVerdict, VerdictCache
from unfreeze.data.validate.worker_pool import LostTask, run_on_rows
from unfreeze.errors import DataError, ResourceError
from unfreeze.runtime.console import Console, ProgressCallback, QuietConsole
from unfreeze.runtime.text_layout import write_csv

Rows = npt.NDArray[np.int64]


def sweep(
    source: Source,
    rows: Rows,
    verdicts: VerdictCache,
    *,
    workers: int | None,
    store_budget: int,
    resize_to: int | None,
    console: Console,
) -> tuple[int, MemoryPixelCache | None]:
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


def _save(verdicts: VerdictCache, console: Console) -> None:
    try:
        verdicts.save()
    except (OSError, ResourceError) as error:
        # the cache only makes the next run faster
        console.warn(f"The results of the check could not be cached for later runs: {error}")


class _Pass:
    """Checks rows and stores their verdicts, each row once."""

    def __init__(
        self,
        source: Source,
        verdicts: VerdictCache,
        advance: ProgressCallback,
        options: dict[str, Any],
    ) -> None:
        self.source, self.verdicts, self.options = source, verdicts, options
        self.advance, self.done = advance, np.zeros(len(source), bool)
        self.sign = verdicts.signatures is not None

    def check(self, rows: Rows) -> None:
        """Checks the rows that were not checked yet, without caching pixels."""
        judge = DecodeCheck(self.source, None, keep=False, sign=self.sign)
        remaining = rows[~self.done[rows]].tolist()
        for row, result in run_on_rows(self.source, judge, remaining, **self.options):
            self._record(row, result)

    def check_and_cache(self, rows: Rows, store: MemoryPixelCache, budget: int) -> bool:
        """Checks rows and caches their pixels; stops with False if they exceed `budget` bytes."""
        judge = DecodeCheck(self.source, store.resize_to, keep=True, sign=self.sign)
        for row, result in run_on_rows(self.source, judge, rows.tolist(), **self.options):
            if not isinstance(result, LostTask) and result[1] is not None:
                store.add(row, result[1])
            self._record(row, result)
            if store.used > budget:
                return False
        return True

    def _record(
        self, row: int, result: tuple[FileVerdict, npt.NDArray[np.uint8] | None] | LostTask
    ) -> None:
        self.verdicts.set(row, lost_verdict(result) if isinstance(result, LostTask) else result[0])
        self.done[row] = True
        self.advance(1)


def _empty_cache(
    source: Source, rows: Rows, verdicts: VerdictCache, budget: int, resize_to: int | None
) -> MemoryPixelCache | None:
    """An empty pixel cache of the estimated size, or None if that exceeds the budget."""
    if budget <= 0 or not len(rows):
        return None
    estimate = mean_bytes(source, rows, verdicts, resize_to) * len(rows)
    if estimate > budget:
        return None
    capacity = min(budget, int(estimate * 1.02)) + 4096  # memory is taken only when written to
    return MemoryPixelCache(len(source), capacity=capacity, resize_to=resize_to)


Mode = Literal["full", "sample", "off"]
SAMPLE = 1_000  # number of images that --scan sample decodes
REFUSE_ABOVE = 0.5  # share of unusable files above which a run does not start


class ImageProblem(NamedTuple):
    """A problem of an image; `left_out`: it cannot be used."""

    path: str
    reason: str
    detail: str
    left_out: bool


@dataclass(frozen=True, eq=False)
class DatasetCheck:
    """Results of the check, by position in `index`.

    `usable`: ascending positions. `heights`, `widths`: in pixels after orientation, 0 if unknown or
    unusable. `decoded`: number of files decoded in this call; `known`: number of files with a
    cached verdict. `store`: pixel cache of all usable images, or None. `signatures`: perceptual
    hashes by position if requested; not known for images that were not checked.
    """

    index: Index
    usable: Rows
    problems: list[ImageProblem]
    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    mode: Mode
    decoded: int
    known: int
    seconds: float
    store: MemoryPixelCache | MappedPixelCache | None
    resize_to: int | None
    signatures: Signatures | None = None

    def images(self) -> ImageDataset:
        """The dataset of usable images, in the order of the index."""
        return ImageDataset(self.index.take(self.usable), self.store, resize_to=self.resize_to)


def check_images(  # noqa: PLR0913  (all but one keyword-only)
    index: Index,
    *,
    workers: int | None = None,
    store_budget: int = 0,
    hold: PixelCachePlan | None = None,
    resize_to: int | None = None,
    console: Console | None = None,
    mode: Mode = "full",
    seed: int = 0,
    refuse_above: float | None = REFUSE_ABOVE,
    sign: bool = False,
) -> DatasetCheck:
    """Decodes images without a cached verdict, and fills the pixel cache.

    `store_budget`: limit of an in-memory pixel cache in bytes; if the pixels (shorter side at most
    `resize_to`) are estimated to fit, all images are decoded, even with cached verdicts. `hold`
    chooses the cache instead. `workers`: number of worker processes; a file that crashes its
    decoder, hangs or needs too much memory is unusable. Mode `sample` decodes SAMPLE random files,
    `off` none; both build no cache and print a note. `refuse_above`: DataError if a larger share of
    the checked files is unusable (None: never). `sign`: also compute perceptual hashes.
    """
    console = console or QuietConsole()
    started = time.perf_counter()
    verdicts = VerdictCache(index.source, sign=sign)
    rows = index.rows[positions_to_check(len(index), mode, seed)]
    known = int((verdicts.states[rows] != UNKNOWN).sum())
    run_check = _Check(index.source, rows, verdicts, resize_to, workers, console)
    if hold is None:
        hold = PixelCachePlan("memory", 0, store_budget, "as requested")
    decoded, store = run_check.run(hold if mode == "full" else NO_PIXEL_CACHE)
    _print_mode(console, mode, len(index))
    was_checked = np.zeros(len(index.source), bool)
    was_checked[rows] = True  # cached verdicts of other files must not change this run
    unusable = (verdicts.states == UNUSABLE) & was_checked
    if refuse_above is not None:
        _refuse_if_unusable(index, rows[unusable[rows]], len(rows), verdicts, refuse_above)
    sizes = np.where(unusable[:, None], 0, verdicts.sizes)[index.rows]
    return DatasetCheck(
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
    verdicts: VerdictCache
    resize_to: int | None
    workers: int | None
    console: Console

    def run(self, hold: PixelCachePlan) -> tuple[int, MemoryPixelCache | MappedPixelCache | None]:
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

    def _build_disk_cache(self, hold: PixelCachePlan) -> tuple[int, MappedPixelCache | None]:
        """(number of decoded files, the cache on disk or None with a warning)."""
        if not len(self.rows):
            return 0, None
        want = pixel_cache_key(self.source, self.rows, self.resize_to, hold.bytes)
        if not want.store.folder.exists():
            for name in evict(PIXEL_CACHE, hold.budget, hold.bytes):
                self.console.say(f"Removed old pixel cache {name} to free space (--store-budget).")
        try:
            return build_mapped_cache(
                want, self.verdicts, workers=self.workers, console=self.console
            )
        except (OSError, ResourceError) as error:
            if hold.asked:
                raise
            self.console.warn(f"Decoded images are not cached on disk: {error}")
            return 0, None


def write_problems_csv(path: Path, problems: Iterable[ImageProblem]) -> None:
    """Write problems.csv with the columns `path,reason,detail,left_out`, atomically."""
    rows = ((*problem[:3], str(problem.left_out).lower()) for problem in problems)
    write_csv(path, ImageProblem._fields, rows)


def positions_to_check(count: int, mode: Mode, seed: int) -> Rows:
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


def _problem(index: Index, row: int, verdicts: VerdictCache) -> ImageProblem:
    reason, detail = verdicts.reasons[row]
    return ImageProblem(index.source.names[row], reason, detail, left_out=True)


def _refuse_if_unusable(
    index: Index, unusable: Rows, checked: int, verdicts: VerdictCache, limit: float
) -> None:
    if len(unusable) <= limit * checked:
        return
    first = _problem(index, int(unusable[0]), verdicts)
    raise DataError(
        f"{len(unusable):,} of {checked:,} images in {index.source.where} cannot be decoded "
        f"(first: {first.path}, {first.reason}: {first.detail}).",
        "Remove the broken images, or download the dataset again.",
    )
