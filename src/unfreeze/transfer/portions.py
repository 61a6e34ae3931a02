"""Which images train and which choose: usable ones, subsets of labels, a part held out."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from unfreeze.data.duplicates import Groups
from unfreeze.data.index import TRAIN, VAL, Index
from unfreeze.data.splits import SplitRow, joined, stratified, subset
from unfreeze.errors import DataError, UsageError
from unfreeze.runtime.console import worded

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """What of the training images is used; values as the flags of `finetune` give them."""

    seed: int
    val: float
    labels_per_class: int | None = None
    label_fraction: float | None = None
    limit: int | None = None
    group_by: str | None = None
    split_from: str | None = None


@dataclass(frozen=True)
class Portions:
    """Positions of `index`: `train`, and `val` (maybe empty) with the reason for it.

    `alike`: positions of images that are near-duplicates of each other, in groups.
    """

    index: Index
    train: Positions
    val: Positions
    reason: str
    alike: Groups = field(default_factory=list)

    def rows(self) -> list[SplitRow]:
        """The lines of split.csv."""
        index = self.index
        return [
            SplitRow(index.paths[place], index.classes[index.labels[place]], name)
            for name, chosen in (("train", self.train), ("val", self.val))
            for place in chosen.tolist()
        ]


def labelled(index: Index) -> Index:
    """What `finetune` may look at: labelled images of train (or of all, without splits) and val.

    Test images are not in it. DataError where there is nothing to learn a choice from.
    """
    if index.layout == "flat" or not index.classes:
        raise DataError(
            f"{index.source.where} has no classes: its {len(index):,} images are unlabelled.",
            "Put each class into a folder of its own, or give a CSV with path and label.",
        )
    if len(index.classes) < 2:
        raise DataError(
            f"There is only one class in {index.source.where}: {index.classes[0]!r}.",
            "Add images of at least one other class.",
        )
    split = index.layout == "splits"
    if split and not len(index.where(TRAIN)):
        raise DataError(
            f"{index.source.where} has splits but no train.", "Name one folder `train`."
        )
    used = np.isin(index.splits, (TRAIN, VAL)) if split else np.ones(len(index), bool)
    return index.take(np.flatnonzero(used & (index.labels >= 0)))


def portion(
    index: Index, usable: Positions, wanted: Wanted, alike: Groups | None = None
) -> Portions:
    """Train and val of the `usable` positions: val as given, else a seeded share of train.

    Where val is cut here, images that are `alike` stay on one side: what is measured on a
    near-duplicate of a training image is memory, and only who cuts can avoid it.
    """
    alike = alike or []
    given = usable[index.splits[usable] == VAL]
    train = subset(
        index.labels,
        usable[index.splits[usable] != VAL],
        per_class=wanted.labels_per_class,
        fraction=wanted.label_fraction,
        limit=wanted.limit,
        seed=wanted.seed,
    )
    _every_class(index, train)
    if len(given):
        _apart(index, train, given, wanted.group_by)
        own = f"as {wanted.split_from} says" if wanted.split_from else "the data's own val"
        return Portions(index, train, given, own, alike)
    rest, held = stratified(
        index.labels,
        train,
        fraction=wanted.val,
        seed=wanted.seed,
        groups=grouped(index, wanted.group_by),
        together=alike,
    )
    reason = _reason(index, train, held, wanted)
    if len(held) and (kept := _several(alike, train)):
        said = worded(kept, "group of near-duplicates stays", "groups of near-duplicates stay")
        reason += f"; {said} on one side, so that no held-out image is known from training"
    return Portions(index, rest, held, reason, alike)


def _several(alike: Groups, chosen: Positions) -> int:
    """How many groups have two images or more among the chosen."""
    there = set(chosen.tolist())
    return sum(len(there.intersection(group)) > 1 for group in alike)


def folds(whole: Portions, wanted: Wanted, count: int) -> list[Portions]:
    """`count` times train and val: the images of a run in parts, each held out once.

    Classes are in proportion in each part; groups, and near-duplicates, stay whole. A val that the
    data brought stays out of it. DataError where a class has too few images or groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    index = whole.index
    brought = (index.splits[whole.val] == VAL).any()
    used = whole.train if brought else np.sort(np.concatenate([whole.train, whole.val]))
    labels = index.labels[used].astype(np.int64)
    groups = together(whole, used, wanted.group_by)
    names = [place if groups is None else groups[place] for place in used.tolist()]
    own = np.unique(names, return_inverse=True)[1].astype(np.int64)
    few = _fewest(index, labels, own)
    if count < 2 or few[1] < count:
        what = "groups" if groups is not None else "images"
        raise DataError(
            f"--folds {count}: the class {few[0]!r} has {few[1]} {what} to hold out in turn.",
            f"Use 2 to {few[1]} folds, or add images." if few[1] > 1 else "Add images of it.",
        )
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    cut = kind(n_splits=count, shuffle=True, random_state=wanted.seed)
    found = [
        Portions(index, used[train], used[held], f"part {number} of {count} (--folds)", whole.alike)
        for number, (train, held) in enumerate(
            cut.split(used, labels, None if groups is None else own), 1
        )
    ]
    for one in found:
        _every_class(index, one.train)
    return found


def together(whole: Portions, used: Positions, by: str | None) -> Sequence[Hashable] | None:
    """By position, the same for images that stay on one side of any cut of the `used` ones.

    Those of one group of `--group-by`, and near-duplicates; None where each stands alone.
    """
    groups: Sequence[Hashable] | None = grouped(whole.index, by)
    if _several(whole.alike, used):
        groups = joined(groups or range(len(whole.index)), whole.alike)
    return groups


def _fewest(index: Index, labels: Positions, groups: Positions) -> tuple[str, int]:
    """The class with the fewest groups, and how many."""
    counts = [len(np.unique(groups[labels == number])) for number in range(len(index.classes))]
    least = int(np.argmin(counts))
    return index.classes[least], counts[least]


def grouped(index: Index, by: str | None) -> Sequence[str] | None:
    """What each image must stay together with: a CSV column's value or a pattern's group."""
    if by is None:
        return index.groups
    column = index.column(by)
    if column is not None:
        return [name or path for name, path in zip(column, index.paths, strict=True)]
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise UsageError(f"--group-by {by}: no column, and no pattern: {error}.") from error
    found = [pattern.search(path) for path in index.paths]
    if not pattern.groups or not any(found):
        raise UsageError(
            f"--group-by {by} is no column of the data, and no path has it as a pattern.",
            "Name a column, or give a pattern with one group in parentheses.",
        )
    # a image without a group of its own is alone
    return [m[1] if m and m[1] else path for m, path in zip(found, index.paths, strict=True)]


def _apart(index: Index, train: Positions, val: Positions, by: str | None) -> None:
    """DataError where the val that was given shares a group with train, and groups were asked for.

    A list's own column of groups is no such wish: its author may have split it otherwise.
    """
    groups = grouped(index, by) if by is not None else None
    if groups is None:
        return
    both = {groups[place] for place in train.tolist()} & {groups[place] for place in val.tolist()}
    if both:
        raise DataError(
            f"{len(both):,} groups of --group-by {by} are in train and in val "
            f"(the first: {min(both)}).",
            "Correct the splits, or leave out val to have one cut.",
        )


def _every_class(index: Index, train: Positions) -> None:
    counts = np.bincount(index.labels[train], minlength=len(index.classes))
    empty = [name for name, count in zip(index.classes, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"The class {empty[0]!r} has no training image that can be used.",
            "Add images to it (problems.csv names the broken ones), remove it, or raise --limit.",
        )


def _reason(index: Index, train: Positions, held: Positions, wanted: Wanted) -> str:
    if len(held):
        return f"{len(held)} of {len(train)} training images held out (--val {wanted.val:g})"
    if not wanted.val:
        return "none, as asked (--val 0): the last weights are kept"
    smallest = int(np.bincount(index.labels[train], minlength=len(index.classes)).min())
    return f"none: the smallest class has {smallest} training images; the last weights are kept"
