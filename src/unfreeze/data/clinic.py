"""`scan`'s pass over a source: every image decoded in watched processes, then compared."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.data import duplicates
from unfreeze.data.examine import Examination, Examiner
from unfreeze.data.examined import Examined
from unfreeze.data.index import Index
from unfreeze.data.layout import SPLIT_NAMES
from unfreeze.data.scan import Problem
from unfreeze.data.supervised import SECONDS, Lost
from unfreeze.data.verdicts import UNUSABLE
from unfreeze.data.watched import watched
from unfreeze.errors import ResourceError
from unfreeze.runtime.console import Console

_SAVE_EVERY = 60.0  # seconds
_TINY = 8  # pixels; and an eighth of the usual side
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class Clinic:
    """What is known of every image of an index, by position.

    `sizes`: [N, 2] heights and widths in pixels, 0 where unusable. `duplicates`, `near`: groups of
    positions. `rules`: how many usable images the checks of other tools would have thrown away.
    `decoded`: files decoded now; the rest was known.
    """

    index: Index
    usable: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    problems: list[Problem]
    duplicates: list[list[int]]
    near: list[list[int]]
    rules: dict[str, int]
    decoded: int
    seconds: float


def attend(
    index: Index, *, workers: int | None, console: Console, seconds: float = SECONDS
) -> Clinic:
    """Decodes what was never examined before, then compares all images with each other."""
    began = time.perf_counter()
    examined = Examined(index.source)
    todo = index.rows[~examined.table["known"][index.rows]].tolist()
    try:
        _examine(examined, todo, workers, seconds, console)
    finally:
        _keep(examined, console)
    return _told(index, examined, len(todo), began)


def _examine(
    examined: Examined, todo: list[int], workers: int | None, seconds: float, console: Console
) -> None:
    if not todo:
        return
    source, saved = examined.verdicts.source, time.monotonic()
    how: dict[str, Any] = {"workers": workers, "seconds": seconds, "warn": console.warn}
    answers = watched(source, Examiner(source), todo, **how)
    with console.progress("decoding images", len(todo)) as advance:
        for row, found in answers:
            if isinstance(found, Lost):
                found = Examination(reason=found.kind, detail=found.detail, passing=found.outside)
            examined.set(row, found)
            advance(1)
            if time.monotonic() - saved > _SAVE_EVERY:
                _keep(examined, console)
                saved = time.monotonic()


def _keep(examined: Examined, console: Console) -> None:
    try:
        examined.save()
    except (OSError, ResourceError) as error:
        # the answer does not need it, only the next scan would be quicker
        console.warn(f"The results of the check could not be cached for later runs: {error}")


def _told(index: Index, examined: Examined, decoded: int, began: float) -> Clinic:
    verdicts, table = examined.verdicts, examined.table[index.rows]
    signatures = examined.signatures[index.rows]
    sound = verdicts.states[index.rows] != UNUSABLE
    usable = np.flatnonzero(sound)
    same = _groups(duplicates.exact(table["digest"][usable]), usable)
    distinct = np.setdiff1d(usable, [place for group in same for place in group[1:]])
    seen = distinct[duplicates.comparable(signatures[distinct])]
    alike = _groups(duplicates.near(signatures["hash"][seen], signatures["thumb"][seen]), seen)
    sides = index.splits[usable].astype(np.int64)
    partners = duplicates.across(sides, table["digest"][usable], signatures[usable])
    problems = [
        *_broken(index, examined, np.flatnonzero(~sound)),
        *_odd(index, examined, usable),
        *_tiny(index, verdicts.sizes[index.rows], usable),
        *_repeated(index, same, "duplicate", "identical to"),
        *_repeated(index, alike, "near-duplicate", "nearly identical to"),
        *_contradicting(index, same + alike),
        *_across_splits(index, usable, partners),
    ]
    return Clinic(
        index=index,
        usable=usable,
        sizes=np.where(sound[:, None], verdicts.sizes[index.rows], 0),
        problems=sorted(problems, key=lambda problem: not problem.left_out),
        duplicates=same,
        near=alike,
        rules=_rules(index, table["keras"], usable),
        decoded=decoded,
        seconds=time.perf_counter() - began,
    )


def _groups(groups: list[list[int]], places: npt.NDArray[np.int64]) -> list[list[int]]:
    return [places[group].tolist() for group in groups]


def _broken(index: Index, examined: Examined, places: npt.NDArray[np.int64]) -> Iterator[Problem]:
    for place in places:
        reason, detail = examined.verdicts.reasons[int(index.rows[place])]
        yield Problem(index.paths[place], reason, detail, left_out=True)


def _odd(index: Index, examined: Examined, usable: npt.NDArray[np.int64]) -> Iterator[Problem]:
    for place in usable:
        for note in examined.notes.get(int(index.rows[place]), ()):
            yield Problem(index.paths[place], note.reason, note.detail, left_out=False)


def _tiny(
    index: Index, sizes: npt.NDArray[np.int32], usable: npt.NDArray[np.int64]
) -> Iterator[Problem]:
    if not len(usable):
        return
    sides = sizes[usable].min(axis=1)
    usual = float(np.median(sides))
    for place in usable[sides < max(_TINY, usual / 8)]:
        height, width = sizes[place]
        detail = f"{width}x{height}; the median shorter side is {usual:.0f}"
        yield Problem(index.paths[place], "tiny", detail, left_out=False)


def _repeated(index: Index, groups: list[list[int]], reason: str, how: str) -> Iterator[Problem]:
    for group in groups:
        first = index.paths[group[0]]
        for place in group[1:]:
            yield Problem(index.paths[place], reason, f"{how} {first}", left_out=False)


def _contradicting(index: Index, groups: list[list[int]]) -> Iterator[Problem]:
    """One image under two labels: the first of each kind is named."""
    for group in groups:
        for place in group[1:]:
            first = group[0]
            labels = {int(index.labels[first]), int(index.labels[place])}
            if len(labels) == 2 and -1 not in labels:
                detail = f"labelled {_class(index, place)} here and {_class(index, first)} as "
                detail += index.paths[first]
                yield Problem(index.paths[place], "two labels", detail, left_out=False)


def _across_splits(
    index: Index, usable: npt.NDArray[np.int64], partners: npt.NDArray[np.int64]
) -> Iterator[Problem]:
    """Images of val and test of which an earlier split has a duplicate or near-duplicate."""
    for place in np.flatnonzero(partners >= 0):
        here, there = usable[place], usable[partners[place]]
        where = f"in {SPLIT_NAMES[index.splits[here]]} here, also in "
        where += f"{SPLIT_NAMES[index.splits[there]]} as {index.paths[there]}"
        yield Problem(index.paths[here], "across splits", where, left_out=False)


def _class(index: Index, place: int) -> str:
    return index.classes[int(index.labels[place])]


def _rules(
    index: Index, keras: npt.NDArray[np.bool_], usable: npt.NDArray[np.int64]
) -> dict[str, int]:
    names = [index.paths[place].lower() for place in usable]
    return {
        "jpeg without JFIF in its first ten bytes": int(keras[usable].sum()),
        "a name without a usual ending": sum(not name.endswith(_SUFFIXES) for name in names),
    }
