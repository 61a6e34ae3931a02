"""The pictures of a source, with their labels and splits, in an order that is the data's own."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from sys import intern

import numpy as np
import numpy.typing as npt

from unfreeze.data import layout
from unfreeze.data.layout import NONE, SPLIT_NAMES, TEST, TRAIN, VAL
from unfreeze.data.listing import read_listing, read_pattern
from unfreeze.data.signatures import HEAD, is_junk, known, named_as_picture
from unfreeze.data.sources import Source
from unfreeze.errors import DataError

_ANYWHERE = layout.Place(NONE, None)
_PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")

SPLIT_FILE = "split.csv"  # of a run
__all__ = ["NONE", "TEST", "TRAIN", "VAL", "Index", "build_index"]


@dataclass(frozen=True, eq=False, slots=True)
class Index:
    """Pictures by position; one entry each in `rows`, `paths`, `labels`, `splits`.

    `rows`: the source's rows. `labels`: places in `classes`, -1 where there is none. `splits`:
    NONE, TRAIN, VAL or TEST. `other`: files that are not part of it; `stray`: those among them
    that are pictures beside the folders that make the layout. `notes`: sentences for people.
    `columns`: those of the list that says the labels, where there is one.
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
    columns: dict[str, list[str]] = field(default_factory=dict)

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
            columns={name: [column[p] for p in places] for name, column in self.columns.items()},
        )

    def column(self, name: str) -> list[str] | None:
        """A column of the list that says the labels, else of the source's; by position."""
        if name in self.columns:
            return self.columns[name]
        found = self.source.column(name)
        return None if found is None else [found[row] for row in self.rows.tolist()]

    def where(self, split: int) -> npt.NDArray[np.int64]:
        """Positions of a split."""
        return np.flatnonzero(self.splits == split)


def build_index(
    source: Source,
    *,
    strange_classes: bool = False,
    labels: str | None = None,
    split_from: str | None = None,
) -> Index:
    """The pictures of `source`, read as its folders (or its list) say.

    A file counts by its name's ending, else by its first bytes. Pictures of folders and archives
    come sorted by path, so that the same files give the same index however they are packed.
    `labels`, a CSV or a pattern, says the classes instead of folders; `split_from`, a run or its
    split.csv, says the splits, and pictures that it does not name are not taken. No picture at all
    is a DataError; so is a class that `train` does not know, unless `strange_classes` (where
    nothing is learned from labels) makes it one of the classes.
    """
    own = source.labels is not None or source.splits is not None or source.kind == "csv"
    draft = _listed(source) if own else _foldered(source, whole=labels is not None)
    if labels is not None:
        draft = _labelled(draft, labels)
    if split_from is not None:
        draft = _split_as(draft, split_from)
    return _made(draft, strange_classes)


@dataclass(frozen=True)
class _Draft:
    """Pictures with what was said of them, one entry each; labels may be None."""

    source: Source
    rows: list[int]
    labels: list[str | None]
    splits: npt.NDArray[np.int8]
    groups: list[str] | None = None
    stray: int = 0
    notes: tuple[str, ...] = ()
    columns: dict[str, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [self.source.names[row] for row in self.rows]

    @property
    def kind(self) -> layout.Kind:
        if self.splits.any():
            return "splits"
        return "classes" if any(label is not None for label in self.labels) else "flat"


def _foldered(source: Source, *, whole: bool) -> _Draft:
    """As the folders say; `whole`: also what lies beside them, as something else says labels."""
    rows = sorted(_pictures(source), key=source.names.__getitem__)
    if not rows:
        raise _empty(source)
    folders = [_folder(source.names[row]) for row in rows]
    found = layout.read_layout(Counter(folders))
    places = [found.places[folder] for folder in folders]
    stray = 0 if whole else places.count(None)
    if stray:
        rows = [row for row, place in zip(rows, places, strict=True) if place is not None]
    inside = [place or _ANYWHERE for place in places if place is not None or whole]
    notes = source.notes + _nested(source)
    if stray:
        notes += (f"{stray:,} pictures lie beside the folders of classes and are not used.",)
    return _Draft(
        source,
        rows,
        [place.label for place in inside],
        np.array([place.split for place in inside], np.int8),
        stray=stray,
        notes=notes,
    )


def _labelled(draft: _Draft, said: str) -> _Draft:
    """With the labels, and where a list has them the splits and groups, that `said` names."""
    names = draft.names
    path = Path(said)
    if path.is_file() or said.lower().endswith(".csv"):
        found = read_listing(path, names, needs="label")
    else:
        found = read_pattern(said, names)
    columns = found.columns
    splits = draft.splits
    if "split" in columns:
        splits = np.array(
            [
                _split(found.where, name, word)
                for name, word in zip(names, columns["split"], strict=True)
            ],
            np.int8,
        )
    groups = columns.get("group")
    return replace(
        draft,
        labels=[label or None for label in columns["label"]],
        splits=splits,
        groups=draft.groups if groups is None else _alone(groups, names),
        notes=draft.notes + found.notes,
        columns=draft.columns | columns,
    )


def _split_as(draft: _Draft, said: str) -> _Draft:
    """Only the pictures that the split file names, in its splits; labels must not contradict."""
    path = Path(said) / SPLIT_FILE if Path(said).is_dir() else Path(said)
    names = draft.names
    found = read_listing(path, names, needs="split")
    labels = draft.labels
    if any(theirs := found.columns.get("label", [])):
        for name, ours, other in zip(names, labels, theirs, strict=True):
            if ours and other and ours != other:
                raise DataError(
                    f"{name} is labelled {ours!r} in the data and {other!r} in {path}.",
                    "Use the split file of these labels.",
                )
        labels = [ours or other or None for ours, other in zip(labels, theirs, strict=True)]
    kept = np.flatnonzero(found.listed).tolist()
    unnamed = len(names) - len(kept)
    note = f"{unnamed:,} pictures do not stand in {path} and are not used."
    words = found.columns["split"]
    return replace(
        draft,
        rows=[draft.rows[place] for place in kept],
        labels=[labels[place] for place in kept],
        splits=np.array([_split(found.where, names[p], words[p]) for p in kept], np.int8),
        groups=None if draft.groups is None else [draft.groups[place] for place in kept],
        notes=draft.notes + found.notes + ((note,) if unnamed else ()),
        columns={name: [column[p] for p in kept] for name, column in draft.columns.items()},
    )


def _pictures(source: Source) -> Iterator[int]:
    for row, name in enumerate(source.names):
        if is_junk(name):
            continue
        if named_as_picture(name) or known(source.head(row, HEAD)):
            yield row


def _folder(name: str) -> str:
    return intern(name.rpartition("/")[0])  # many names, few folders


def _listed(source: Source) -> _Draft:
    """The pictures of a source that says labels and splits itself: every row, in its order."""
    count = len(source)
    splits = [
        _split(source.where, name, word)
        for name, word in zip(source.names, source.splits or [], strict=False)
    ]
    groups = source.groups
    return _Draft(
        source,
        list(range(count)),
        [name or None for name in source.labels or [""] * count],
        np.array(splits or np.full(count, NONE), np.int8),
        groups=None if groups is None else _alone(groups, source.names),
        notes=source.notes,
    )


def _alone(groups: Sequence[str], names: Sequence[str]) -> list[str]:
    # a picture without a group is alone in one
    return [group or name for group, name in zip(groups, names, strict=True)]


def _split(where: str, picture: str, name: str) -> int:
    if not name:
        return NONE
    split = layout.SPLIT_OF.get(name.lower())
    if split is None:
        raise DataError(
            f"{where}: the split {name!r} of {picture} is unknown.",
            "Use train, val or test.",
        )
    return split


def _made(draft: _Draft, strange: bool) -> Index:
    source, splits = draft.source, draft.splits
    if not draft.rows:
        raise _empty(source)
    classes = _classes(draft.labels, np.zeros_like(splits) if strange else splits)
    number: dict[str | None, int] = {name: place for place, name in enumerate(classes)}
    number[None] = -1
    unknown = set(draft.labels) - set(number)
    for row, label, split in zip(draft.rows, draft.labels, splits, strict=True) if unknown else ():
        if label in unknown:
            raise DataError(
                f"The class {label!r} of {SPLIT_NAMES[split] or 'no split'} "
                f"({source.names[row]}) does not exist in train.",
                "Rename it to a class of train, add it there, or take it out.",
            )
    return Index(
        source=source,
        rows=np.array(draft.rows, np.int64),
        paths=draft.names,
        labels=np.array([number[name] for name in draft.labels], np.int32),
        splits=splits,
        classes=classes,
        other=len(source) - len(draft.rows) + source.skipped,
        layout=draft.kind,
        stray=draft.stray,
        groups=draft.groups,
        notes=draft.notes,
        columns=draft.columns,
    )


def _classes(labels: list[str | None], splits: npt.NDArray[np.int8]) -> tuple[str, ...]:
    """Names of train by code point; of everything, where train has no labels or is not there."""
    in_train = {labels[place] for place in np.flatnonzero(splits == TRAIN).tolist()}
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
