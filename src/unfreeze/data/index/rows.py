"""Finds the images of a source, with the labels and splits of its folders or label file."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from sys import intern

import numpy as np
import numpy.typing as npt

from unfreeze.data.images.signatures import (
    HEAD,
    format_of_signature,
    has_image_suffix,
    is_junk,
    may_be_junk,
)
from unfreeze.data.index import folder_layout as layout
from unfreeze.data.index.folder_layout import NONE, TRAIN
from unfreeze.data.index.split_names import splits_of_words
from unfreeze.data.sources.concat import ConcatSource
from unfreeze.data.sources.own_folders import is_inside
from unfreeze.data.sources.source import Source
from unfreeze.errors import DataError
from unfreeze.runtime.console import pluralised

_NO_LABEL = layout.FolderRole(NONE, None)
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


@dataclass(frozen=True)
class DraftIndex:
    """Images with their labels, splits and groups, one entry each.

    Labels may be None, groups may be "". `stray`: number of ignored images outside the class
    folders. `doubt`: why the folders may not be classes.
    """

    source: Source
    rows: list[int]
    labels: list[str | None]
    splits: npt.NDArray[np.int8]
    groups: list[str] | None = None
    stray: int = 0
    notes: tuple[str, ...] = ()
    columns: dict[str, list[str]] = field(default_factory=dict)
    doubt: layout.LayoutDoubt | None = None

    @property
    def names(self) -> list[str]:
        """Paths of the images."""
        return [self.source.names[row] for row in self.rows]

    @property
    def kind(self) -> layout.LayoutKind:
        """The layout: splits, classes or flat."""
        if self.splits.any():
            return "splits"
        return "classes" if any(label is not None for label in self.labels) else "flat"


def find_images(source: Source, *, whole: bool = False) -> DraftIndex:
    """The images of a source with the labels of the source itself; DataError if there are none.

    `whole`: include images outside the class folders, because labels come from elsewhere. If some
    of several sources have splits, the images of the others go to train.
    """
    if isinstance(source, ConcatSource):
        return _concatenate(source, [find_images(part, whole=whole) for part in source.parts])
    return _from_list(source) if source.listed else _from_folders(source, whole=whole)


def _concatenate(source: ConcatSource, parts: list[DraftIndex]) -> DraftIndex:
    split = any(part.splits.any() for part in parts)
    grouped = any(part.groups is not None for part in parts)
    notes, splits = list[str](), []
    for title, part in zip(source.titles, parts, strict=True):
        notes += [f"{title}: {note}" for note in part.notes]
        unsplit = split and not part.splits.any()
        splits.append(np.full_like(part.splits, TRAIN) if unsplit else part.splits)
        if unsplit:
            notes.append(f"{title} has no splits: its {len(part.rows):,} images go to train.")
    groups = [group for part in parts for group in part.groups or [""] * len(part.rows)]
    rows = [
        start + row for start, part in zip(source.starts, parts, strict=True) for row in part.rows
    ]
    return DraftIndex(
        source,
        rows,
        [label for part in parts for label in part.labels],
        np.concatenate(splits),
        groups=groups if grouped else None,
        stray=sum(part.stray for part in parts),
        notes=tuple(notes),
        doubt=next((part.doubt for part in parts if part.doubt is not None), None),
    )


def _from_folders(source: Source, *, whole: bool) -> DraftIndex:
    """Labels and splits from folders; `whole`: include images outside the class folders."""
    rows = sorted(image_rows(source), key=source.names.__getitem__)
    if not rows:
        raise no_images_error(source)
    folders = [_folder(source.names[row]) for row in rows]
    folder_layout = layout.read_layout(Counter(folders))
    entries = [folder_layout.places[folder] for folder in folders]
    stray = 0 if whole else entries.count(None)
    if stray:
        rows = [row for row, entry in zip(rows, entries, strict=True) if entry is not None]
    used = [entry or _NO_LABEL for entry in entries if entry is not None or whole]
    notes = source.notes + _nested_archive_notes(source) + folder_layout.notes
    if stray:
        subject = pluralised(stray, "image is", "images are")
        notes += (f"{subject} outside the class folders: ignored.",)
    return DraftIndex(
        source,
        rows,
        [entry.label for entry in used],
        np.array([entry.split for entry in used], np.int8),
        stray=stray,
        notes=notes,
        doubt=folder_layout.doubt,
    )


def image_rows(source: Source) -> Iterator[int]:
    """The rows of a folder or archive that are images, by suffix or signature, in order."""
    junk, outputs = may_be_junk(source.names), source.outputs
    for row, name in enumerate(source.names):
        if (junk and is_junk(name)) or (outputs and is_inside(name, outputs)):
            continue
        if has_image_suffix(name) or format_of_signature(source.head(row, HEAD)):
            yield row


def _folder(name: str) -> str:
    return intern(name.rpartition("/")[0])  # saves memory: many names share few folders


def _from_list(source: Source) -> DraftIndex:
    """All rows of a source that has its own labels and splits, in order."""
    count = len(source)
    return DraftIndex(
        source,
        list(range(count)),
        [name or None for name in source.labels or [""] * count],
        split_numbers(source.where, source.names, source.splits or [""] * count),
        groups=source.groups,
        notes=source.notes,
    )


def split_numbers(where: str, names: Sequence[str], words: Sequence[str]) -> npt.NDArray[np.int8]:
    """The split number of each image from its split name; DataError for an unknown name."""
    format_of_signature = splits_of_words(words)
    unknown = next((row for row, word in enumerate(words) if word not in format_of_signature), None)
    if unknown is not None:
        raise DataError(
            f"{where}: unknown split {words[unknown]!r} for {names[unknown]}.",
            "Use train, val or test.",
        )
    return np.array([format_of_signature[word] for word in words], np.int8)


def _nested_archive_notes(source: Source) -> tuple[str, ...]:
    archives = _archives(source)
    if not archives:
        return ()
    return (f"Nested archives are not opened: {len(archives):,} (first: {archives[0]}).",)


def _archives(source: Source) -> list[str]:
    joined = "\n".join(source.names).lower()
    if not any(ending in joined for ending in _ARCHIVE_SUFFIXES):
        return []  # one search for all names: fast for a million files
    return [name for name in source.names if name.lower().endswith(_ARCHIVE_SUFFIXES)]


def no_images_error(source: Source) -> DataError:
    """The error for a source without images."""
    archives = _archives(source)
    details = f", including the archive {archives[0]}" if archives else ""
    details += f", and {', '.join(source.outputs[:3])} (written by unfreeze)" * bool(source.outputs)
    return DataError(
        f"{source.where} contains no images: {len(source):,} other files{details}.",
        "Extract nested archives; supported formats: JPEG, PNG, WebP, TIFF, BMP, GIF and others.",
    )
