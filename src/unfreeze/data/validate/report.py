"""The full dataset check of `scan`: decodes every image in subprocesses, then finds duplicates."""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.images.decode import decode, resize_shorter_side
from unfreeze.data.images.errors import Undecodable
from unfreeze.data.index.folder_layout import SPLIT_NAMES
from unfreeze.data.index.index import Index
from unfreeze.data.sources.source import Source
from unfreeze.data.validate import duplicates
from unfreeze.data.validate.check_cache import CheckCache
from unfreeze.data.validate.checks import ImageCheck, ImageChecker
from unfreeze.data.validate.precheck import ImageProblem
from unfreeze.data.validate.verdicts import UNUSABLE
from unfreeze.data.validate.worker_pool import SECONDS, LostTask, run_on_rows
from unfreeze.errors import ResourceError
from unfreeze.runtime.console import Console

_SAVE_EVERY = 60.0  # seconds
_TINY = 8  # pixels; also an eighth of the median side
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class DatasetReport:
    """Results of the dataset check, by position in `index`.

    `usable`: positions of usable images. `sizes`: [N, 2] heights and widths in pixels, 0 if
    unusable. `duplicates`, `near`: groups of positions of exact and near-duplicates. `rules`: how
    many usable images common checks of other tools would reject. `decoded`: number of files decoded
    in this call; the other results came from the cache.
    """

    index: Index
    usable: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    problems: list[ImageProblem]
    duplicates: list[list[int]]
    near: list[list[int]]
    rules: dict[str, int]
    decoded: int
    seconds: float


def check_dataset(
    index: Index, *, workers: int | None, console: Console, seconds: float = SECONDS
) -> DatasetReport:
    """Decodes images that are not in the cache, then compares all images with each other."""
    started = time.perf_counter()
    examined = CheckCache(index.source)
    todo = index.rows[~examined.table["known"][index.rows]].tolist()
    try:
        _examine(examined, todo, workers, seconds, console)
    finally:
        _save(examined, console)
    return _results(index, examined, len(todo), started)


def _examine(
    examined: CheckCache, todo: list[int], workers: int | None, seconds: float, console: Console
) -> None:
    if not todo:
        return
    source, saved = examined.verdicts.source, time.monotonic()
    options: dict[str, Any] = {"workers": workers, "seconds": seconds, "warn": console.warn}
    results = run_on_rows(source, ImageChecker(source), todo, **options)
    with console.progress("decoding images", len(todo)) as advance:
        for row, result in results:
            if isinstance(result, LostTask):
                result = ImageCheck(
                    reason=result.kind, detail=result.detail, passing=result.outside
                )
            examined.set(row, result)
            advance(1)
            if time.monotonic() - saved > _SAVE_EVERY:
                _save(examined, console)
                saved = time.monotonic()


def _save(examined: CheckCache, console: Console) -> None:
    try:
        examined.save()
    except (OSError, ResourceError) as error:
        # the cache only makes the next scan faster
        console.warn(f"The results of the check could not be cached for later runs: {error}")


def _results(index: Index, examined: CheckCache, decoded: int, started: float) -> DatasetReport:
    verdicts, table = examined.verdicts, examined.table[index.rows]
    signatures = examined.signatures[index.rows]
    is_usable = verdicts.states[index.rows] != UNUSABLE
    usable = np.flatnonzero(is_usable)
    exact_groups = _groups(duplicates.exact_groups(table["digest"][usable]), usable)
    distinct = np.setdiff1d(usable, [position for group in exact_groups for position in group[1:]])
    hashed = distinct[duplicates.comparable(signatures[distinct])]
    near_groups = _groups(
        duplicates.near_groups(signatures["hash"][hashed], signatures["thumb"][hashed]), hashed
    )
    splits = index.splits[usable].astype(np.int64)
    partners = duplicates.duplicates_across_splits(
        splits, table["digest"][usable], signatures[usable]
    )
    problems = [
        *_unusable_images(index, examined, np.flatnonzero(~is_usable)),
        *_notes(index, examined, usable),
        *_tiny(index, verdicts.sizes[index.rows], usable),
        *_duplicates(index, exact_groups, "duplicate", "identical to"),
        *_duplicates(index, near_groups, "near-duplicate", "nearly identical to"),
        *_conflicting_labels(index, exact_groups + near_groups),
        *_split_leakage(index, usable, partners),
    ]
    return DatasetReport(
        index=index,
        usable=usable,
        sizes=np.where(is_usable[:, None], verdicts.sizes[index.rows], 0),
        problems=sorted(problems, key=lambda problem: not problem.left_out),
        duplicates=exact_groups,
        near=near_groups,
        rules=_rules(index, table["keras"], usable),
        decoded=decoded,
        seconds=time.perf_counter() - started,
    )


def _groups(groups: list[list[int]], positions: npt.NDArray[np.int64]) -> list[list[int]]:
    return [positions[group].tolist() for group in groups]


def _unusable_images(
    index: Index, examined: CheckCache, positions: npt.NDArray[np.int64]
) -> Iterator[ImageProblem]:
    for position in positions:
        reason, detail = examined.verdicts.reasons[int(index.rows[position])]
        yield ImageProblem(index.paths[position], reason, detail, left_out=True)


def _notes(
    index: Index, examined: CheckCache, usable: npt.NDArray[np.int64]
) -> Iterator[ImageProblem]:
    for position in usable:
        for note in examined.notes.get(int(index.rows[position]), ()):
            yield ImageProblem(index.paths[position], note.reason, note.detail, left_out=False)


def _tiny(
    index: Index, sizes: npt.NDArray[np.int32], usable: npt.NDArray[np.int64]
) -> Iterator[ImageProblem]:
    if not len(usable):
        return
    sides = sizes[usable].min(axis=1)
    median = float(np.median(sides))
    for position in usable[sides < max(_TINY, median / 8)]:
        height, width = sizes[position]
        detail = f"{width}x{height}; the median shorter side is {median:.0f}"
        yield ImageProblem(index.paths[position], "tiny", detail, left_out=False)


def _duplicates(
    index: Index, groups: list[list[int]], reason: str, relation: str
) -> Iterator[ImageProblem]:
    for group in groups:
        first = index.paths[group[0]]
        for position in group[1:]:
            yield ImageProblem(index.paths[position], reason, f"{relation} {first}", left_out=False)


def _conflicting_labels(index: Index, groups: list[list[int]]) -> Iterator[ImageProblem]:
    """Duplicates with different labels, each compared with the first of its group."""
    for group in groups:
        for position in group[1:]:
            first = group[0]
            labels = {int(index.labels[first]), int(index.labels[position])}
            if len(labels) == 2 and -1 not in labels:
                detail = f"labelled {_class(index, position)} here and {_class(index, first)} as "
                detail += index.paths[first]
                yield ImageProblem(index.paths[position], "two labels", detail, left_out=False)


def _split_leakage(
    index: Index, usable: npt.NDArray[np.int64], partners: npt.NDArray[np.int64]
) -> Iterator[ImageProblem]:
    """Images of val and test with an exact or near-duplicate in an earlier split (data leakage)."""
    for row in np.flatnonzero(partners >= 0):
        position, partner = usable[row], usable[partners[row]]
        detail = f"in {SPLIT_NAMES[index.splits[position]]} here, also in "
        detail += f"{SPLIT_NAMES[index.splits[partner]]} as {index.paths[partner]}"
        yield ImageProblem(index.paths[position], "across splits", detail, left_out=False)


def _class(index: Index, position: int) -> str:
    return index.classes[int(index.labels[position])]


def _rules(
    index: Index, keras: npt.NDArray[np.bool_], usable: npt.NDArray[np.int64]
) -> dict[str, int]:
    names = [index.paths[position].lower() for position in usable]
    return {
        "jpeg without JFIF in its first ten bytes": int(keras[usable].sum()),
        "a name without a usual ending": sum(not name.endswith(_SUFFIXES) for name in names),
    }


SIDE = 112  # largest shorter side in pixels

Pixels = npt.NDArray[np.uint8]


class Thumbnailer:
    """`thumbnailer(row)`: the thumbnail of a row, or None if it is unusable; runs in a worker."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, row: int) -> Pixels | None:
        """uint8 [h, w, 3] with a shorter side of at most SIDE."""
        try:
            return resize_shorter_side(decode(self.source.read(row)), SIDE)
        except (Undecodable, OSError, MemoryError):
            return None  # the check before training reports it


def thumbnails(index: Index, positions: Collection[int]) -> dict[int, Pixels]:
    """Thumbnails by position of the index, without unusable images."""
    rows = {int(index.rows[position]): position for position in sorted(positions)}
    results = run_on_rows(index.source, Thumbnailer(index.source), list(rows), workers=1)
    return {rows[row]: pixels for row, pixels in results if isinstance(pixels, np.ndarray)}
