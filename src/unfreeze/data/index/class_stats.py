"""Class counts by split, and warnings about imbalance and missing or unlabelled classes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unfreeze.data.index.folder_layout import SPLIT_NAMES
from unfreeze.data.index.index import TRAIN, Index
from unfreeze.data.index.splits import SMALLEST_CLASS
from unfreeze.runtime.console import pluralised

WHOLE = "all"  # the name of the only split of an unsplit dataset
IMBALANCED = 10.0  # ratio of the largest to the smallest class that is reported
_LISTED = 12  # most classes listed with their counts in one line
_NAMED = 5  # most classes named in one sentence


@dataclass(frozen=True)
class ClassCounts:
    """Number of images by class and split.

    `splits`: images by split (`all` if there are no splits). `counts`: for each class, in class
    order, its images by split. `unlabelled`: unlabelled images by split. `imbalance`: size ratio
    of the largest to the smallest non-empty class of train (of all images without splits); None
    below two classes. `unknown`: classes of val and test that are missing in train; `missing`:
    classes of train that are missing in val or test.
    """

    splits: dict[str, int]
    counts: dict[str, dict[str, int]]
    unlabelled: dict[str, int]
    imbalance: float | None
    unknown: dict[str, list[str]]
    missing: dict[str, list[str]]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.counts)

    def lines(self) -> list[str]:
        """A line per split: the images of each class, or their range if there are many classes."""
        return [self._line(split) for split in self.splits if self.counts]

    def _line(self, split: str) -> str:
        row = {name: counts[split] for name, counts in self.counts.items() if counts[split]}
        name = "images" if split == WHOLE else split
        if not row:
            return f"{name}: {self.splits[split]:,} unlabelled"
        if len(row) > _LISTED:
            least, most = min(row.values()), max(row.values())
            return f"{name}: {len(row):,} classes of {least:,} to {most:,} images"
        return f"{name}: " + ", ".join(f"{label} {count:,}" for label, count in row.items())

    def notes(self) -> list[str]:
        """Warnings for people, a sentence each."""
        base = "train" if "train" in self.splits else WHOLE
        notes = []
        if self.counts and any(self.unlabelled.values()):
            count = sum(self.unlabelled.values())
            notes.append(pluralised(count, "image is unlabelled.", "images are unlabelled."))
        sizes = {name: row.get(base, 0) for name, row in self.counts.items() if row.get(base)}
        if self.imbalance is not None and self.imbalance >= IMBALANCED:
            least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
            notes.append(
                f"Imbalanced classes: {most} has {sizes[most]:,} images, {least} "
                f"{sizes[least]:,} ({self.imbalance:.0f} to 1). Read the balanced accuracy, and "
                "use --select balanced."
            )
        few = [name for name, count in sizes.items() if count < SMALLEST_CLASS]
        if few and len(sizes) > 1:
            notes.append(f"Classes with fewer than {SMALLEST_CLASS} training images: {_list(few)}.")
        for split, names in self.unknown.items():
            notes.append(f"Classes of {split} missing in train: {_list(names)}.")
        for split, names in self.missing.items():
            notes.append(f"Classes of train missing in {split}: {_list(names)}.")
        return notes


def class_counts(index: Index) -> ClassCounts:
    """The class counts of `index`."""
    split_ids = [
        split_id for split_id in range(len(SPLIT_NAMES)) if (index.splits == split_id).any()
    ]
    names = {split_id: SPLIT_NAMES[split_id] or WHOLE for split_id in split_ids}
    table = {
        names[split_id]: np.bincount(
            index.labels[(index.splits == split_id) & (index.labels >= 0)],
            minlength=len(index.classes),
        )
        for split_id in split_ids
    }
    counts = {
        label: {split: int(row[class_id]) for split, row in table.items()}
        for class_id, label in enumerate(index.classes)
    }
    base = np.array(table.get("train", next(iter(table.values()), np.zeros(0, int))))
    present = base[base > 0]
    unknown, missing = {}, {}
    if TRAIN in split_ids and present.size:
        for split, row in table.items():
            if split not in ("train", WHOLE) and row.any():
                unknown[split] = _class_names(index, (row > 0) & (base == 0))
                missing[split] = _class_names(index, (row == 0) & (base > 0))
    return ClassCounts(
        splits={names[split_id]: int((index.splits == split_id).sum()) for split_id in split_ids},
        counts=counts,
        unlabelled={
            names[split_id]: int(((index.splits == split_id) & (index.labels < 0)).sum())
            for split_id in split_ids
        },
        imbalance=float(present.max() / present.min()) if present.size > 1 else None,
        unknown=_without_empty(unknown),
        missing=_without_empty(missing),
    )


def _class_names(index: Index, mask: np.ndarray) -> list[str]:
    return [index.classes[class_id] for class_id in np.flatnonzero(mask).tolist()]


def _without_empty(classes_by_split: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {split: names for split, names in classes_by_split.items() if names}


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
