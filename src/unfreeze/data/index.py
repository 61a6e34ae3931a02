"""The pictures of a source, with their labels and splits, in an order that is the data's own."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from unfreeze.data import layout
from unfreeze.data.layout import NONE, SPLIT_NAMES, TEST, TRAIN, VAL
from unfreeze.data.signatures import HEAD, is_junk, known, named_as_picture
from unfreeze.data.sources import Source
from unfreeze.errors import DataError

_PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")

__all__ = ["NONE", "TEST", "TRAIN", "VAL", "Index", "build_index"]


@dataclass(frozen=True, eq=False, slots=True)
class Index:
    """Pictures by position; one entry each in `rows`, `paths`, `labels`, `splits`.

    `rows`: the source's rows. `labels`: places in `classes`, -1 where there is none. `splits`:
    NONE, TRAIN, VAL or TEST. `other`: files that are not part of it; `stray`: those among them
    that are pictures beside the folders that make the layout. `notes`: sentences for people.
    """

    source: Source
    rows: npt.NDArray[np.int64]
    paths: list[str]
    labels: npt.NDArray[np.int32]
    splits: npt.NDArray[np.int8]
    classes: tuple[str, ...]
    other: int
    layout: layout.Kind
    stray: int = 0
    groups: list[str] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: npt.ArrayLike) -> "Index":
        """The same index with these positions only, in this order; classes stay."""
        chosen = np.asarray(positions)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)
        places = chosen.tolist()
        return replace(
            self,
            rows=self.rows[chosen],
            paths=[self.paths[place] for place in places],
            labels=self.labels[chosen],
            splits=self.splits[chosen],
            groups=None if self.groups is None else [self.groups[place] for place in places],
        )

    def where(self, split: int) -> npt.NDArray[np.int64]:
        """Positions of a split."""
        return np.flatnonzero(self.splits == split)


def build_index(source: Source, *, strange_classes: bool = False) -> Index:
    """The pictures of `source`, read as its folders (or its list) say.

    A file counts by its name's ending, else by its first bytes. Pictures of folders and archives
    come sorted by path, so that the same files give the same index however they are packed.
    No picture at all is a DataError; so is a class that `train` does not know, unless
    `strange_classes` (where nothing is learned from labels) makes it one of the classes.
    """
    if source.labels is not None or source.splits is not None or source.kind == "csv":
        return _listed(source, strange_classes)
    rows = sorted(_pictures(source), key=source.names.__getitem__)
    folders = Counter(_folder(source.names[row]) for row in rows)
    found = layout.read_layout(folders)
    inside = [row for row in rows if found.places[_folder(source.names[row])] is not None]
    places = [_place(found, source.names[row]) for row in inside]
    stray = len(rows) - len(inside)
    notes = source.notes + _nested(source)
    if stray:
        notes += (f"{stray:,} pictures lie beside the folders of classes and are not used.",)
    return _made(
        source,
        inside,
        [place.label for place in places],
        np.array([place.split for place in places], np.int8),
        kind=found.kind,
        stray=stray,
        notes=notes,
        strange=strange_classes,
    )


def _pictures(source: Source) -> Iterator[int]:
    for row, name in enumerate(source.names):
        if is_junk(name):
            continue
        if named_as_picture(name) or known(source.head(row, HEAD)):
            yield row


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _place(found: layout.Layout, name: str) -> layout.Place:
    place = found.places[_folder(name)]
    if place is None:
        raise ValueError(f"{name} lies outside the layout")
    return place


def _listed(source: Source, strange: bool) -> Index:
    """The index of a source that says labels and splits itself: every row, in its order."""
    count = len(source)
    labels = [name or None for name in source.labels or [""] * count]
    splits = np.array(
        [_split(source, row, name) for row, name in enumerate(source.splits or [])]
        or np.full(count, NONE),
        np.int8,
    )
    labelled = any(label is not None for label in labels)
    kind: layout.Kind = "splits" if splits.any() else "classes" if labelled else "flat"
    return _made(
        source, range(count), labels, splits, kind=kind, notes=source.notes, strange=strange
    )


def _split(source: Source, row: int, name: str) -> int:
    if not name:
        return NONE
    split = layout.SPLIT_OF.get(name.lower())
    if split is None:
        raise DataError(
            f"{source.where}: the split {name!r} of {source.names[row]} is unknown.",
            "Use train, val or test.",
        )
    return split


def _made(
    source: Source,
    rows: Sequence[int],
    labels: list[str | None],
    splits: npt.NDArray[np.int8],
    *,
    kind: layout.Kind,
    stray: int = 0,
    notes: tuple[str, ...] = (),
    strange: bool = False,
) -> Index:
    if not len(rows):
        raise _empty(source)
    classes = _classes(labels, np.zeros_like(splits) if strange else splits)
    number = {name: place for place, name in enumerate(classes)}
    for row, label, split in zip(rows, labels, splits, strict=True):
        if label is not None and label not in number:
            raise DataError(
                f"The class {label!r} of {SPLIT_NAMES[split]} ({source.names[row]}) "
                "does not exist in train.",
                "Rename it to a class of train, add it there, or take it out.",
            )
    return Index(
        source=source,
        rows=np.array(rows, np.int64),
        paths=[source.names[row] for row in rows],
        labels=np.array([-1 if name is None else number[name] for name in labels], np.int32),
        splits=splits,
        classes=classes,
        other=len(source) - len(rows) + source.skipped,
        layout=kind,
        stray=stray,
        groups=_groups(source, rows),
        notes=notes,
    )


def _groups(source: Source, rows: Sequence[int]) -> list[str] | None:
    # a picture without a group is alone in one
    groups = source.groups
    return None if groups is None else [groups[row] or source.names[row] for row in rows]


def _classes(labels: list[str | None], splits: npt.NDArray[np.int8]) -> tuple[str, ...]:
    """Names of train by code point; of everything, where train has no labels or is not there."""
    in_train = {name for name, split in zip(labels, splits, strict=True) if split == TRAIN}
    names = in_train - {None} or set(labels)
    return tuple(sorted(name for name in names if name is not None))


def _nested(source: Source) -> tuple[str, ...]:
    archives = _archives(source)
    if not archives:
        return ()
    return (f"Archives inside are not looked into: {len(archives):,} (the first: {archives[0]}).",)


def _archives(source: Source) -> list[str]:
    return [name for name in source.names if name.lower().endswith(_PACKED)]


def _empty(source: Source) -> DataError:
    archives = _archives(source)
    such = f", an archive in it ({archives[0]}) included" if archives else ""
    return DataError(
        f"{source.where} holds no pictures: {len(source):,} other files{such}.",
        "Unpack archives inside archives; pictures are JPEG, PNG, WebP, TIFF, BMP, GIF and others.",
    )
