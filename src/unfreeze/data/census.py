"""How many images each class has in each split, and what about it should make one think."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unfreeze.data.index import TRAIN, Index
from unfreeze.data.layout import SPLIT_NAMES
from unfreeze.data.splits import SMALLEST_CLASS
from unfreeze.runtime.console import worded

WHOLE = "all"  # the name of what is not split
IMBALANCED = 10.0  # the largest class against the smallest, from which it is said
_LISTED = 12  # classes that a line lists with their counts
_NAMED = 5  # classes that a sentence names


@dataclass(frozen=True)
class Census:
    """Counts of an index.

    `counts`: for each class, in the order of classes, its images by split (`all` where there
    are no splits). `unlabelled`: images without a class, by split. `imbalance`: the largest
    class of train (of all, without splits) over the smallest; None below two classes, and where
    one is empty. `unknown`: classes of val and test that train does not have; `missing`: those
    of train that val or test do not have.
    """

    splits: dict[str, int]
    counts: dict[str, dict[str, int]]
    unlabelled: dict[str, int]
    imbalance: float | None
    unknown: dict[str, list[str]]
    missing: dict[str, list[str]]

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.counts)

    def lines(self) -> list[str]:
        """A line for each split: images by class, or their range where classes are many."""
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
        """Sentences for people; nothing where there is nothing to say."""
        base = "train" if "train" in self.splits else WHOLE
        said = []
        if self.counts and any(self.unlabelled.values()):
            lacking = sum(self.unlabelled.values())
            said.append(worded(lacking, "image is unlabelled.", "images are unlabelled."))
        sizes = {name: row.get(base, 0) for name, row in self.counts.items() if row.get(base)}
        if self.imbalance is not None and self.imbalance >= IMBALANCED:
            least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
            said.append(
                f"Imbalanced classes: {most} has {sizes[most]:,} images, {least} "
                f"{sizes[least]:,} ({self.imbalance:.0f} to 1). Read the balanced accuracy, and "
                "use --select balanced."
            )
        few = [name for name, count in sizes.items() if count < SMALLEST_CLASS]
        if few and len(sizes) > 1:
            said.append(f"Classes with fewer than {SMALLEST_CLASS} training images: {_list(few)}.")
        for split, names in self.unknown.items():
            said.append(f"Classes of {split} missing in train: {_list(names)}.")
        for split, names in self.missing.items():
            said.append(f"Classes of train missing in {split}: {_list(names)}.")
        return said


def census(index: Index) -> Census:
    """The counts of `index`."""
    there = [number for number in range(len(SPLIT_NAMES)) if (index.splits == number).any()]
    names = {number: SPLIT_NAMES[number] or WHOLE for number in there}
    table = {
        names[number]: np.bincount(
            index.labels[(index.splits == number) & (index.labels >= 0)],
            minlength=len(index.classes),
        )
        for number in there
    }
    counts = {
        label: {split: int(row[place]) for split, row in table.items()}
        for place, label in enumerate(index.classes)
    }
    base = np.array(table.get("train", next(iter(table.values()), np.zeros(0, int))))
    present = base[base > 0]
    unknown, missing = {}, {}
    if TRAIN in there and present.size:
        for split, row in table.items():
            if split not in ("train", WHOLE) and row.any():
                unknown[split] = _those(index, (row > 0) & (base == 0))
                missing[split] = _those(index, (row == 0) & (base > 0))
    return Census(
        splits={names[number]: int((index.splits == number).sum()) for number in there},
        counts=counts,
        unlabelled={
            names[number]: int(((index.splits == number) & (index.labels < 0)).sum())
            for number in there
        },
        imbalance=float(present.max() / present.min()) if present.size > 1 else None,
        unknown=_filled(unknown),
        missing=_filled(missing),
    )


def _those(index: Index, chosen: np.ndarray) -> list[str]:
    return [index.classes[place] for place in np.flatnonzero(chosen).tolist()]


def _filled(found: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {split: names for split, names in found.items() if names}


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
