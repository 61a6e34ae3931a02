"""Training and validation sets: usable images, label subsets, hold-out split and folds."""

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from unfreeze.data.index.index import TRAIN, VAL, Index
from unfreeze.data.index.splits import (
    SMALLEST_CLASS,
    SplitRow,
    merge_groups,
    stratified_split,
    subset,
)
from unfreeze.data.index.stratification import (
    Membership,
    iterative_parts,
    rarest_groups,
    with_every_group,
)
from unfreeze.data.validate.duplicates import Groups
from unfreeze.errors import DataError, UsageError
from unfreeze.runtime.console import pluralised

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SplitOptions:
    """Options of subsetting and splitting; values of the flags of `finetune`."""

    seed: int
    val: float
    labels_per_class: int | None = None
    label_fraction: float | None = None
    limit: int | None = None
    group_by: str | None = None
    split_from: str | None = None


@dataclass(frozen=True)
class TrainValSplit:
    """Positions in `index` of the training and validation set (`val` may be empty), and `reason`.

    `alike`: groups of positions that are near-duplicates of each other.
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
            SplitRow(index.paths[position], index.classes[index.labels[position]], name)
            for name, positions in (("train", self.train), ("val", self.val))
            for position in positions.tolist()
        ]


def labelled_images(index: Index, *, every_split: bool = False, classes: bool = True) -> Index:
    """Labelled images of train and val (of all if there are no splits); never those of test.

    `every_split`: of all splits, for what trains no model that is evaluated. `classes`: whether
    labels are classes, not masks or other targets of a task. Raises DataError for a dataset without
    labels or with fewer than two different ones.
    """
    if index.layout == "flat" or not index.classes:
        raise DataError(
            f"{index.source.where} has no classes: its {len(index):,} images are unlabelled.",
            "Use one folder per class, or a CSV with path and label.",
        )
    if len(index.classes) < 2 and not classes:
        raise DataError(
            f"There is only one label in {index.source.where}: {index.classes[0]!r}.",
            "Add images with other labels.",
        )
    if len(index.classes) < 2:
        raise DataError(
            f"There is only one class in {index.source.where}: {index.classes[0]!r}.",
            "Add images of at least one other class.",
        )
    split = index.layout == "splits" and not every_split
    if split and not len(index.where(TRAIN)):
        raise DataError(
            f"{index.source.where} has splits but no train split.", "Name one folder `train`."
        )
    used = np.isin(index.splits, (TRAIN, VAL)) if split else np.ones(len(index), bool)
    return index.take(np.flatnonzero(used & (index.labels >= 0)))


def split_train_val(
    index: Index,
    usable: Positions,
    wanted: SplitOptions,
    alike: Groups | None = None,
    members: Membership | None = None,
) -> TrainValSplit:
    """Split the `usable` positions: the dataset's own val if there is one, else a hold-out split.

    A hold-out split is stratified and seeded, and keeps near-duplicates (`alike`) on one side to
    avoid data leakage. `members` [N, C]: groups that images belong to, by which it is stratified;
    None: by class.
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
    _check_classes(index, train)
    if len(given):
        _check_groups(index, train, given, wanted.group_by)
        reason = f"from {wanted.split_from}" if wanted.split_from else "the dataset's own val split"
        return TrainValSplit(index, train, given, reason, alike)
    if members is None:
        rest, held_out = stratified_split(
            index.labels,
            train,
            fraction=wanted.val,
            seed=wanted.seed,
            groups=groups_by(index, wanted.group_by),
            together=alike,
        )
    else:
        rest, held_out = _iterative_split(
            TrainValSplit(index, train, train[:0], "", alike), wanted, members
        )
    reason = _reason(index, train, held_out, wanted, several=members is not None)
    if len(held_out) and (count := _duplicate_groups(alike, train)):
        groups = pluralised(
            count, "group of near-duplicates stays", "groups of near-duplicates stay"
        )
        reason += f"; {groups} on one side of the split, against data leakage"
    return TrainValSplit(index, rest, held_out, reason, alike)


def _iterative_split(
    whole: TrainValSplit, wanted: SplitOptions, members: Membership
) -> tuple[Positions, Positions]:
    """(train, val) of the images of `whole.train`; train keeps an image of every group.

    Val is empty if there are fewer than 2 * SMALLEST_CLASS images, or groups that stay together.
    """
    train = whole.train
    units = _unit_numbers(whole, train, wanted.group_by)
    if not wanted.val or len(np.unique(units)) < 2 * SMALLEST_CLASS:
        return train, train[:0]
    some = members[train]
    parts = iterative_parts(some, units, (1 - wanted.val, wanted.val), wanted.seed)
    parts = with_every_group(some, units, parts)
    return train[parts == 0], train[parts == 1]


def _unit_numbers(whole: TrainValSplit, used: Positions, by: str | None) -> Positions:
    """A number for each of the `used` images; the same for those that stay together."""
    groups = split_groups(whole, used, by)
    names = [position if groups is None else groups[position] for position in used.tolist()]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _duplicate_groups(alike: Groups, positions: Positions) -> int:
    """Number of groups with at least two images among `positions`."""
    members = set(positions.tolist())
    return sum(len(members.intersection(group)) > 1 for group in alike)


# a group [N] of similar images for each image of an index, or the groups [N, C] that it belongs to
Strata = npt.NDArray[np.int32] | Membership
LEAST = 10  # images whose rarest group is the same, to be a class of `stratified_by`


def members_of(strata: Strata) -> Membership | None:
    """The groups [N, C] that images belong to, if they may belong to several."""
    return strata.astype(np.bool_) if strata.ndim == 2 else None


def group_numbers(strata: Strata) -> npt.NDArray[np.int32]:
    """One group [N] for each image: its own, or the rarest of several."""
    members = members_of(strata)
    return strata.astype(np.int32) if members is None else rarest_groups(members, LEAST)


def stratified_by(index: Index, used: npt.NDArray[np.bool_], strata: Strata) -> Index:
    """The index with `strata` as its classes, numbered as in the images of the mask `used`."""
    strata = group_numbers(strata)
    # what occurs in the others alone needs no training image
    known, numbers = np.unique(strata[used], return_inverse=True)
    labels = np.zeros(len(index), np.int32)
    labels[used] = numbers
    return replace(index, labels=labels, classes=tuple(map(str, range(max(1, len(known))))))


def cross_validation_folds(
    whole: TrainValSplit,
    wanted: SplitOptions,
    count: int,
    *,
    strata: bool = False,
    members: Membership | None = None,
) -> list[TrainValSplit]:
    """Stratified k-fold cross-validation with `count` folds; each image is held out once.

    Groups and near-duplicates stay in one fold. The dataset's own val split is not used. `strata`:
    the classes are groups of similar images, which are mixed if one is too small. `members`: as in
    `split_train_val`. Raises DataError if a class has too few images or groups.
    """
    index = whole.index
    given = (index.splits[whole.val] == VAL).any()
    used = whole.train if given else np.sort(np.concatenate([whole.train, whole.val]))
    labels = index.labels[used].astype(np.int64)
    groups = split_groups(whole, used, wanted.group_by)
    group_ids = _unit_numbers(whole, used, wanted.group_by)
    name, fewest = _fewest(index, labels, group_ids)
    if strata and fewest < count:
        labels, fewest = np.zeros_like(labels), len(np.unique(group_ids))
    if count < 2 or fewest < count:
        unit = "groups" if groups is not None else "images"
        has = "there are" if strata else f"the class {name!r} has"
        raise DataError(
            f"--folds {count} is not possible: {has} only {fewest} {unit}.",
            f"Use 2 to {fewest} folds, or add images."
            if fewest > 1
            else "Add images of this class.",
        )
    if members is not None:
        _check_members(members[used], group_ids, count)
        part_of = iterative_parts(members[used], group_ids, [1 / count] * count, wanted.seed)
        cuts = [(np.flatnonzero(part_of != k), np.flatnonzero(part_of == k)) for k in range(count)]
    else:
        cuts = _folds(labels, None if groups is None else group_ids, count, wanted.seed)
    result = [
        TrainValSplit(
            index, used[train], used[val], f"fold {number} of {count} (--folds)", whole.alike
        )
        for number, (train, val) in enumerate(cuts, 1)
    ]
    for fold in result if not strata else ():
        _check_classes(index, fold.train)
    return result


def _folds(
    labels: Positions, groups: Positions | None, count: int, seed: int
) -> list[tuple[Positions, Positions]]:
    """(train, val) of each stratified fold."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(n_splits=count, shuffle=True, random_state=seed)
    return [*splitter.split(labels, labels, groups)]


def _check_members(members: Membership, units: Positions, folds: int) -> None:
    """DataError if all images of a group would be held out in one fold."""
    for column in members.T:
        if column.any() and len(np.unique(units[column])) < 2:
            raise DataError(
                f"--folds {folds} is not possible: a label has one image, or one group of images, "
                "which would be missing in training when it is held out.",
                "Add images with the rarest label, or remove that label.",
            )


def repeated_splits(
    whole: TrainValSplit,
    wanted: SplitOptions,
    *,
    folds: int,
    repeats: int,
    strata: Strata | None = None,
) -> Iterator[tuple[int, int | None, TrainValSplit]]:
    """(seed, fold, split) of each run of `--folds` and `--repeats`, seed by seed; none without.

    `fold` counts from 0, None without folds. `strata`: of a task without classes. DataError if
    there is too little data.
    """
    index, grouped = whole.index, strata is not None
    members = None if strata is None else members_of(strata)
    if strata is not None:
        used = np.zeros(len(index), bool)
        used[np.concatenate([whole.train, whole.val])] = True
        whole = replace(whole, index=stratified_by(index, used, strata))
    for seed in range(wanted.seed, wanted.seed + repeats) if folds or repeats > 1 else ():
        seeded = replace(wanted, seed=seed)
        if folds:
            splits = cross_validation_folds(whole, seeded, folds, strata=grouped, members=members)
            for number, split in enumerate(splits):
                yield seed, number, replace(split, index=index)
            continue
        positions = np.sort(np.concatenate([whole.train, whole.val]))
        # the same images as the run's own, split by another seed
        unlimited = replace(seeded, labels_per_class=None, label_fraction=None, limit=None)
        split = split_train_val(whole.index, positions, unlimited, whole.alike, members)
        if not len(split.val):
            raise DataError(
                "--repeats needs a validation set, but no images are held out.",
                "Add images of each class, or omit --repeats.",
            )
        yield seed, None, replace(split, index=index)


def split_groups(
    whole: TrainValSplit, used: Positions, by: str | None
) -> Sequence[Hashable] | None:
    """Group of each position of the index: images of a group stay on one side of every split.

    Joins the groups of `--group-by` with near-duplicates among `used`; None without any groups.
    """
    groups: Sequence[Hashable] | None = groups_by(whole.index, by)
    if _duplicate_groups(whole.alike, used):
        groups = merge_groups(groups or range(len(whole.index)), whole.alike)
    return groups


def _fewest(index: Index, labels: Positions, groups: Positions) -> tuple[str, int]:
    """(class with the fewest groups, their number)."""
    counts = [len(np.unique(groups[labels == label])) for label in range(len(index.classes))]
    label = int(np.argmin(counts))
    return index.classes[label], counts[label]


def groups_by(index: Index, by: str | None) -> Sequence[str] | None:
    """Group of each image: the value of a CSV column or the match of a pattern."""
    if by is None:
        return index.groups
    column = index.column(by)
    if column is not None:
        return [name or path for name, path in zip(column, index.paths, strict=True)]
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise UsageError(
            f"--group-by {by} is neither a column nor a valid pattern: {error}."
        ) from error
    matches = [pattern.search(path) for path in index.paths]
    if not pattern.groups or not any(matches):
        raise UsageError(
            f"--group-by {by} is not a column, and matches no path as a pattern with a group.",
            "Use the name of a column, or a pattern with one group in parentheses.",
        )
    # an image without a match is a group of its own
    return [m[1] if m and m[1] else path for m, path in zip(matches, index.paths, strict=True)]


def _check_groups(index: Index, train: Positions, val: Positions, by: str | None) -> None:
    """Raise DataError if the given val shares a group of `--group-by` with train.

    A group column of the dataset alone does not count: its author may have split it otherwise.
    """
    groups = groups_by(index, by) if by is not None else None
    if groups is None:
        return
    shared = {groups[p] for p in train.tolist()} & {groups[p] for p in val.tolist()}
    if shared:
        raise DataError(
            f"{len(shared):,} groups of --group-by {by} are in both train and val "
            f"(the first: {min(shared)}).",
            "Correct the splits, or leave out val to split automatically.",
        )


def _check_classes(index: Index, train: Positions) -> None:
    counts = np.bincount(index.labels[train], minlength=len(index.classes))
    empty = [name for name, count in zip(index.classes, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"The class {empty[0]!r} has no usable training image.",
            "Add images to it (problems.csv names the broken ones), remove it, or raise --limit.",
        )


def _reason(
    index: Index, train: Positions, held_out: Positions, wanted: SplitOptions, *, several: bool
) -> str:
    if len(held_out):
        return f"{len(held_out)} of {len(train)} training images held out (--val {wanted.val:g})"
    if not wanted.val:
        return "none (--val 0): the last weights are used"
    if several:
        return f"none: {len(train)} training images are too few; the last weights are used"
    smallest = int(np.bincount(index.labels[train], minlength=len(index.classes)).min())
    return f"none: the smallest class has {smallest} training images; the last weights are used"
