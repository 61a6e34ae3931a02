"""The images of a source, with their labels and splits, in an order that is the data's own."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.data import layout, multilabel
from unfreeze.data.drafts import Draft, drafted, empty, split_numbers
from unfreeze.data.label_names import alike, composed
from unfreeze.data.layout import NONE, SPLIT_NAMES, TEST, TRAIN, VAL, Doubt
from unfreeze.data.listing import read_listing, read_pattern
from unfreeze.data.sources import Source
from unfreeze.data.sources.delimited import SUFFIXES
from unfreeze.data.sources.roles import plain_labels
from unfreeze.data.split_names import split_name
from unfreeze.errors import DataError, UsageError
from unfreeze.runtime.console import worded
from unfreeze.text import as_name

SPLIT_FILE = "split.csv"  # of a run
__all__ = ["NONE", "TEST", "TRAIN", "VAL", "Index", "build_index"]


@dataclass(frozen=True, eq=False, slots=True)
class Index:
    """Images by position; one entry each in `rows`, `paths`, `labels`, `splits`.

    `rows`: the source's rows. `labels`: places in `classes`, -1 where there is none. `splits`:
    NONE, TRAIN, VAL or TEST. `other`: files that are not part of it; `stray`: those among them
    that are images beside the folders that make the layout. `notes`: sentences for people.
    `columns`: those of the list that says the labels, where there is one. `doubt`: why the classes
    may be none, where folders say them.
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
    doubt: Doubt | None = None

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
    label_column: str | None = None,
) -> Index:
    """The images of `source`, read as its folders (or its list) say.

    A file counts by its name's ending, else by its first bytes. Images of folders and archives
    come sorted by path, so that the same files give the same index however they are packed.
    `labels`, a list, a column of the list itself or a pattern, says the classes instead of folders
    (`label_column`: which column of a list does);
    `split_from`, a run or its split.csv, says the splits, and images that it does not name are
    not taken. No image at all is a DataError; so is a class that `train` does not know, and so
    are folders that cannot be classes, unless `strange_classes` (where nothing is learned from
    labels) takes them as they are.
    """
    draft = drafted(source, whole=labels is not None)
    if labels is not None or label_column is not None:
        draft = _labelled(draft, labels, label_column)
    if split_from is not None:
        draft = _split_as(draft, split_from)
    return _made(draft, strange_classes)


def _labelled(draft: Draft, said: str | None, label_column: str | None) -> Draft:
    """With the labels, and where a list has them the splits and groups, that `said` names.

    `label_column`: of that list, or of the list that the data is.
    """
    names = draft.names
    if said is None:
        return _by_column(draft, str(label_column), "--label-column")
    path = Path(said)
    if path.is_file() or said.lower().endswith((*SUFFIXES, ".parquet")):
        found = read_listing(path, names, needs="label", label=label_column)
    elif label_column is not None:
        raise UsageError(
            f"--label-column {label_column} needs a CSV or Parquet file, not --labels {said}.",
            "Give the file with --labels, or omit --label-column.",
        )
    elif draft.source.column(said) is not None:
        return _by_column(draft, said, "--labels")
    else:
        found = read_pattern(said, names)
    columns = found.columns
    splits = draft.splits
    if "split" in columns:
        splits = split_numbers(found.where, names, columns["split"])
    return replace(
        draft,
        labels=[label or None for label in columns["label"]],
        splits=splits,
        groups=columns.get("group", draft.groups),
        notes=draft.notes + found.notes,
        columns=draft.columns | columns,
        doubt=None,
    )


def _by_column(draft: Draft, name: str, flag: str) -> Draft:
    """With a column of the source's own list as labels."""
    column = draft.source.column(name)
    if column is None:
        raise DataError(
            f"{flag} {name}: {draft.source.where} has no such column.",
            "Name an existing column, or give a CSV with --labels.",
        )
    labels = plain_labels(column)
    return replace(draft, labels=[labels[row] or None for row in draft.rows], doubt=None)


def _split_as(draft: Draft, said: str) -> Draft:
    """Only the images that the split file names, in its splits; labels must not contradict."""
    path = Path(said) / SPLIT_FILE if Path(said).is_dir() else Path(said)
    names = draft.names
    found = read_listing(path, names, needs="split")
    labels = composed(draft.labels)
    if any(theirs := composed(found.columns.get("label", []))):
        for name, ours, other in zip(names, labels, theirs, strict=True):
            # a list's fields are stripped, and names that are no UTF-8 stand as their text
            if ours and other and ours.strip() not in (other, as_name(other)):
                raise DataError(
                    f"{name} is labelled {ours!r} in the data and {other!r} in {path}.",
                    "Use a split file with the same labels.",
                )
        labels = [ours or other or None for ours, other in zip(labels, theirs, strict=True)]
    kept = np.flatnonzero(found.listed).tolist()
    unnamed = len(names) - len(kept)
    said = worded(unnamed, "image is", "images are")
    note = f"{said} not listed in {path}: ignored."
    words = found.columns["split"]
    return replace(
        draft,
        rows=[draft.rows[place] for place in kept],
        labels=[labels[place] for place in kept],
        splits=split_numbers(found.where, [names[p] for p in kept], [words[p] for p in kept]),
        groups=None if draft.groups is None else [draft.groups[place] for place in kept],
        notes=draft.notes + found.notes + ((note,) if unnamed else ()),
        columns={name: [column[p] for p in kept] for name, column in draft.columns.items()},
    )


def _made(draft: Draft, strange: bool) -> Index:
    source, splits = draft.source, draft.splits
    if not draft.rows:
        raise empty(source)
    draft = replace(draft, labels=composed(draft.labels))
    if (sign := multilabel.separator(draft.labels)) is not None:
        draft = _without_labels(draft, sign, strange)
    doubt = draft.doubt or _split_words(draft.labels)
    if doubt is not None and doubt.certain and not strange:
        raise DataError(f"{source.where}: {doubt.sentence}", doubt.next_step)
    classes = _classes(draft.labels, np.zeros_like(splits) if strange else splits)
    number: dict[str | None, int] = {name: place for place, name in enumerate(classes)}
    number[None] = -1
    unknown = set(draft.labels) - set(number)
    for row, label, split in zip(draft.rows, draft.labels, splits, strict=True) if unknown else ():
        if label in unknown:
            raise _unknown(label, classes, f"{SPLIT_NAMES[split] or 'no split'}", source.names[row])
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
        groups=None if draft.groups is None else _alone(draft.groups, draft.names),
        notes=draft.notes,
        columns=draft.columns,
        doubt=doubt,
    )


def _unknown(label: str | None, classes: Sequence[str], split: str, path: str) -> DataError:
    """What to say of a class that train does not have."""
    sentence = f"Class {label!r} of {split} ({path}) does not exist in train"
    near = alike(label or "", classes)
    if near is not None:
        return DataError(
            f"{sentence}, which has {near!r}: the names differ only by case or spaces.",
            "Use the same class name in all splits.",
        )
    return DataError(
        f"{sentence}.", "Rename it to a class of train, add it to train, or remove it."
    )


def _split_words(labels: Sequence[str | None]) -> Doubt | None:
    """What is doubtful about labels that are words for splits, every one."""
    named = {label: split_name(label) for label in set(labels) if label is not None}
    if len(named) < 2 or not all(said is not None and said.pure for said in named.values()):
        return None
    return Doubt(
        f"The labels {', '.join(sorted(named))} are names of splits, not classes.",
        "Put the classes into a column, or into folders inside the splits.",
        True,
    )


def _without_labels(draft: Draft, sign: str, strange: bool) -> Draft:
    """Where nothing is learned from labels, those that are several to an image are not used."""
    if not strange:
        raise multilabel.refusal(draft.names, draft.labels, sign)
    said = multilabel.unlabelled_note(draft.labels, sign)
    return replace(draft, labels=[None] * len(draft.rows), notes=(*draft.notes, said))


def _alone(groups: Sequence[str], names: Sequence[str]) -> list[str]:
    # an image without a group is alone in one
    return [group or name for group, name in zip(groups, names, strict=True)]


def _classes(labels: list[str | None], splits: npt.NDArray[np.int8]) -> tuple[str, ...]:
    """Names of train by code point; of everything, where train has no labels or is not there."""
    in_train = {labels[place] for place in np.flatnonzero(splits == TRAIN).tolist()}
    names = in_train - {None} or set(labels)
    return tuple(sorted(name for name in names if name is not None))
