"""The index of a dataset: its images with labels and splits, in a reproducible order."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.data.index import folder_layout
from unfreeze.data.index import labels as label_names
from unfreeze.data.index.folder_layout import NONE, SPLIT_NAMES, TEST, TRAIN, VAL, LayoutDoubt
from unfreeze.data.index.label_file import read_listing, read_pattern
from unfreeze.data.index.labels import normalize_labels, similar_name
from unfreeze.data.index.rows import DraftIndex, find_images, no_images_error, split_numbers
from unfreeze.data.index.split_names import split_name
from unfreeze.data.sources.columns import normalize_label_column
from unfreeze.data.sources.concat import ConcatSource
from unfreeze.data.sources.delimited import SUFFIXES
from unfreeze.data.sources.source import Source
from unfreeze.errors import DataError, UsageError
from unfreeze.runtime.console import pluralised
from unfreeze.text import as_name

SPLIT_FILE = "split.csv"  # in a run folder
__all__ = ["NONE", "TEST", "TRAIN", "VAL", "Index", "build_index"]


@dataclass(frozen=True, eq=False, slots=True)
class Index:
    """Images by position, with one entry each in `rows`, `paths`, `labels` and `splits`.

    `rows`: rows of the source. `labels`: indices into `classes`, -1 if unlabelled. `splits`: NONE,
    TRAIN, VAL or TEST. `other`: number of files that are not in the index; `stray`: how many of
    them are images outside the class folders. `notes`: messages for people. `columns`: columns of
    the label file, if there is one. `doubt`: why the folders may not be classes.
    """

    source: Source
    rows: npt.NDArray[np.int64]
    paths: list[str]
    labels: npt.NDArray[np.int32]
    splits: npt.NDArray[np.int8]
    classes: tuple[str, ...]
    other: int
    layout: folder_layout.LayoutKind
    stray: int = 0
    groups: list[str] | None = None
    notes: tuple[str, ...] = ()
    columns: dict[str, list[str]] = field(default_factory=dict)
    doubt: LayoutDoubt | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: npt.ArrayLike) -> "Index":
        """The index of these positions (or boolean mask), in this order; the classes stay."""
        selected = np.asarray(positions)
        selected = (
            np.flatnonzero(selected) if selected.dtype == np.bool_ else selected.astype(np.int64)
        )
        indices = selected.tolist()
        return replace(
            self,
            rows=self.rows[selected],
            paths=[self.paths[i] for i in indices],
            labels=self.labels[selected],
            splits=self.splits[selected],
            groups=None if self.groups is None else [self.groups[i] for i in indices],
            columns={name: [column[i] for i in indices] for name, column in self.columns.items()},
        )

    def column(self, name: str) -> list[str] | None:
        """A column of the label file or else the source, by position; None if missing."""
        if name in self.columns:
            return self.columns[name]
        values = self.source.column(name)
        return None if values is None else [values[row] for row in self.rows.tolist()]

    def where(self, split: int) -> npt.NDArray[np.int64]:
        """Positions of a split."""
        return np.flatnonzero(self.splits == split)


def build_index(
    source: Source,
    *,
    strange_classes: bool = False,
    whole: bool = False,
    labels: str | None = None,
    split_from: str | None = None,
    label_column: str | None = None,
    label_sets: bool = False,
) -> Index:
    """The index of the images of `source`, with labels and splits from its folders or label file.

    Images are recognised by suffix, else by signature. Images of folders and archives are sorted by
    path, so that the same files give the same index however they are packed.

    `labels`: a label file, a column of the source or a pattern, which replaces class folders;
    `label_column`: the column of that file. `split_from`: a run or its split.csv, which sets the
    splits; images that it does not list are left out. DataError if there are no images, if val or
    test have a class that is missing in train, or if the folders cannot be classes;
    `strange_classes` accepts both (for commands that do not train on labels). `whole`: images
    outside the class folders are unlabelled instead of left out. `label_sets`: a label
    may hold several names and is kept as it is; otherwise such labels are refused, or ignored with
    `strange_classes`.
    """
    draft = find_images(source, whole=whole or labels is not None)
    if labels is not None or label_column is not None:
        draft = _with_labels(draft, labels, label_column)
    if split_from is not None:
        draft = _with_splits(draft, split_from)
    return _build(draft, strange_classes, label_sets)


def has_label_sets(source: Source, labels: str | None, label_column: str | None) -> bool:
    """Whether images of a table or label file have several labels each, by `label_separator`.

    Arguments as in `build_index`.
    """
    parts = source.parts if isinstance(source, ConcatSource) else [source]
    if labels is None and not any(part.listed for part in parts):
        return False
    draft = find_images(source, whole=labels is not None)
    if labels is not None or label_column is not None:
        draft = _with_labels(draft, labels, label_column)
    return label_names.label_separator(draft.labels) is not None


def with_splits_of(index: Index, split_from: str) -> Index:
    """The images listed in the split file of a run (or the file itself), with its splits."""
    path = Path(split_from) / SPLIT_FILE if Path(split_from).is_dir() else Path(split_from)
    listing = read_listing(path, index.paths, needs="split")
    listed = np.flatnonzero(listing.listed)
    unlisted = len(index) - len(listed)
    subject = pluralised(unlisted, "image is", "images are")
    note = f"{subject} not listed in {path}: ignored."
    words = [listing.columns["split"][position] for position in listed.tolist()]
    taken = index.take(listed)
    splits = split_numbers(listing.where, taken.paths, words)
    notes = index.notes + listing.notes + ((note,) if unlisted else ())
    return replace(taken, splits=splits, notes=notes)


def _with_labels(draft: DraftIndex, labels: str | None, label_column: str | None) -> DraftIndex:
    """Replaces the labels by `labels`: a label file (with splits, groups), column or pattern.

    `label_column`: a column of that file, or of the source if `labels` is None.
    """
    names = draft.names
    if labels is None:
        return _with_label_column(draft, str(label_column), "--label-column")
    path = Path(labels)
    if path.is_file() or labels.lower().endswith((*SUFFIXES, ".parquet")):
        listing = read_listing(path, names, needs="label", label=label_column)
    elif label_column is not None:
        raise UsageError(
            f"--label-column {label_column} needs a CSV or Parquet file, not --labels {labels}.",
            "Give the file with --labels, or omit --label-column.",
        )
    elif draft.source.column(labels) is not None:
        return _with_label_column(draft, labels, "--labels")
    else:
        listing = read_pattern(labels, names)
    columns = listing.columns
    splits = draft.splits
    if "split" in columns:
        splits = split_numbers(listing.where, names, columns["split"])
    return replace(
        draft,
        labels=[label or None for label in columns["label"]],
        splits=splits,
        groups=columns.get("group", draft.groups),
        notes=draft.notes + listing.notes,
        columns=draft.columns | columns,
        doubt=None,
    )


def _with_label_column(draft: DraftIndex, name: str, flag: str) -> DraftIndex:
    """Replaces the labels by a column of the source."""
    column = draft.source.column(name)
    if column is None:
        raise DataError(
            f"{flag} {name}: {draft.source.where} has no such column.",
            "Name an existing column, or give a CSV with --labels.",
        )
    labels = normalize_label_column(column)
    return replace(draft, labels=[labels[row] or None for row in draft.rows], doubt=None)


def _with_splits(draft: DraftIndex, split_from: str) -> DraftIndex:
    """Keeps the images listed in the split file, with its splits; its labels must agree."""
    path = Path(split_from) / SPLIT_FILE if Path(split_from).is_dir() else Path(split_from)
    names = draft.names
    listing = read_listing(path, names, needs="split")
    labels = normalize_labels(draft.labels)
    if any(listed_labels := normalize_labels(listing.columns.get("label", []))):
        for name, label, listed_label in zip(names, labels, listed_labels, strict=True):
            # fields of a CSV are stripped, and names that are not UTF-8 are escaped
            if (
                label
                and listed_label
                and label.strip() not in (listed_label, as_name(listed_label))
            ):
                raise DataError(
                    f"{name} is labelled {label!r} in the data and {listed_label!r} in {path}.",
                    "Use a split file with the same labels.",
                )
        labels = [
            label or listed_label or None
            for label, listed_label in zip(labels, listed_labels, strict=True)
        ]
    listed = np.flatnonzero(listing.listed).tolist()
    unlisted = len(names) - len(listed)
    subject = pluralised(unlisted, "image is", "images are")
    note = f"{subject} not listed in {path}: ignored."
    words = listing.columns["split"]
    return replace(
        draft,
        rows=[draft.rows[i] for i in listed],
        labels=[labels[i] for i in listed],
        splits=split_numbers(listing.where, [names[i] for i in listed], [words[i] for i in listed]),
        groups=None if draft.groups is None else [draft.groups[i] for i in listed],
        notes=draft.notes + listing.notes + ((note,) if unlisted else ()),
        columns={name: [column[i] for i in listed] for name, column in draft.columns.items()},
    )


def _build(draft: DraftIndex, strange: bool, several: bool) -> Index:
    source, splits = draft.source, draft.splits
    if not draft.rows:
        raise no_images_error(source)
    draft = replace(draft, labels=normalize_labels(draft.labels))
    separator = None if several else label_names.label_separator(draft.labels)
    if separator is not None:
        draft = _without_multilabels(draft, separator, strange)
    doubt = draft.doubt or _labels_are_splits(draft.labels)
    if doubt is not None and doubt.certain and not strange:
        raise DataError(f"{source.where}: {doubt.sentence}", doubt.next_step)
    classes = _classes(draft.labels, np.zeros_like(splits) if strange else splits)
    class_ids: dict[str | None, int] = {name: class_id for class_id, name in enumerate(classes)}
    class_ids[None] = -1
    unknown = set(draft.labels) - set(class_ids)
    for row, label, split in zip(draft.rows, draft.labels, splits, strict=True) if unknown else ():
        if label in unknown:
            raise _unknown_class_error(
                label, classes, f"{SPLIT_NAMES[split] or 'no split'}", source.names[row]
            )
    return Index(
        source=source,
        rows=np.array(draft.rows, np.int64),
        paths=draft.names,
        labels=np.array([class_ids[name] for name in draft.labels], np.int32),
        splits=splits,
        classes=classes,
        other=len(source) - len(draft.rows) + source.skipped,
        layout=draft.kind,
        stray=draft.stray,
        groups=None if draft.groups is None else _complete_groups(draft.groups, draft.names),
        notes=draft.notes,
        columns=draft.columns,
        doubt=doubt,
    )


def _unknown_class_error(
    label: str | None, classes: Sequence[str], split: str, path: str
) -> DataError:
    """The error for a class that is missing in train."""
    sentence = f"Class {label!r} of {split} ({path}) does not exist in train"
    similar = similar_name(label or "", classes)
    if similar is not None:
        return DataError(
            f"{sentence}, which has {similar!r}: the names differ only by case or spaces.",
            "Use the same class name in all splits.",
        )
    return DataError(
        f"{sentence}.", "Rename it to a class of train, add it to train, or remove it."
    )


def _labels_are_splits(labels: Sequence[str | None]) -> LayoutDoubt | None:
    """The doubt about labels that are all names of splits."""
    splits = {label: split_name(label) for label in set(labels) if label is not None}
    if len(splits) < 2 or not all(split is not None and split.pure for split in splits.values()):
        return None
    return LayoutDoubt(
        f"The labels {', '.join(sorted(splits))} are names of splits, not classes.",
        "Put the classes into a column, or into folders inside the splits.",
        True,
    )


def _without_multilabels(draft: DraftIndex, separator: str, strange: bool) -> DraftIndex:
    """Drops multi-label annotations if `strange`, else raises."""
    if not strange:
        raise label_names.multilabel_error(draft.names, draft.labels, separator)
    note = label_names.multilabel_note(draft.labels, separator)
    return replace(draft, labels=[None] * len(draft.rows), notes=(*draft.notes, note))


def _complete_groups(groups: Sequence[str], names: Sequence[str]) -> list[str]:
    # an image without a group is a group of its own
    return [group or name for group, name in zip(groups, names, strict=True)]


def _classes(labels: list[str | None], splits: npt.NDArray[np.int8]) -> tuple[str, ...]:
    """Sorted class names of train, or of all images if train is missing or unlabelled."""
    in_train = {labels[i] for i in np.flatnonzero(splits == TRAIN).tolist()}
    names = in_train - {None} or set(labels)
    return tuple(sorted(name for name in names if name is not None))
