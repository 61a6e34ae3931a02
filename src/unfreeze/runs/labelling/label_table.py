"""The table of `label`: a label for each image, on disk before the next image is shown."""

import csv
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.data.index.folder_layout import SPLIT_NAMES
from unfreeze.data.index.index import NONE, Index
from unfreeze.data.index.labels import (
    SEPARATORS,
    label_separator,
    normalize_labels,
    similar_name,
)
from unfreeze.data.sources.columns import normalize_label_column
from unfreeze.data.sources.paths import AMBIGUOUS, ImageLookup
from unfreeze.errors import DataError, UsageError
from unfreeze.runtime.text_layout import read_csv, write_csv

COLUMNS = ("path", "label", "split")
_LONGEST = 200  # characters of a class name


class LabelTable:
    """The CSV file at `path`, and the images of an index by position. Safe for several threads.

    Lines of the file stay as they are and in their order, also those of images that the index lacks
    (`unmatched`: how many). Labels that the data has itself are part of the table from the first
    write on. `classes`: the names so far; those in use are never removed.
    """

    def __init__(self, path: Path, index: Index, classes: Iterable[str] = ()) -> None:
        self.path, self._index = path, index
        self._lock, self._closed = threading.Lock(), False
        self._stamp = self._stamp_now()
        self._lines = [] if self._stamp is None else _read_lines(path)
        self._line_of = self._match()
        self.listed = list(self._line_of)  # positions of images, in the order of the file
        self.unmatched = len(self._lines) - len(self.listed)
        splits = index.splits.any() or any(line[2].strip() for line in self._lines)
        self._split = "train" if splits else ""
        for image in np.flatnonzero(index.labels >= 0).tolist():
            if image not in self._line_of:
                self._add(image, index.classes[index.labels[image]])
        labels = [line[1].strip() for line in self._lines]
        if (sign := label_separator(labels)) is not None:
            raise UsageError(
                f"--out {path} holds several labels in one cell, separated by {sign!r}.",
                "Name a new file: the page gives one label for each image.",
            )
        self.classes: list[str] = []
        for name in (*classes, *index.classes, *sorted(set(labels) - {""})):
            if name not in self.classes:
                self.classes.append(name)

    def label(self, image: int) -> str:
        """The label of an image, "" without one."""
        line = self._line_of.get(image)
        return "" if line is None else self._lines[line][1].strip()

    def labelled(self) -> npt.NDArray[np.bool_]:
        """Which images have a label, [N]."""
        mask = np.zeros(len(self._index), np.bool_)
        mask[[image for image in list(self._line_of) if self.label(image)]] = True
        return mask

    def counts(self) -> dict[str, int]:
        """Number of images of each class that has some."""
        return dict(Counter(filter(None, map(self.label, list(self._line_of)))))

    def set(self, labels: Mapping[int, str]) -> dict[int, str]:
        """Set or remove ("") labels by position; the previous ones, once all are on disk.

        UsageError if a label cannot be a class, or if another program wrote the file meanwhile.
        Nothing is changed then, nor after OSError or ResourceError.
        """
        with self._lock:
            if self._closed:
                raise UsageError("unfreeze label has ended.", "Start it again.")
            names = {image: self._class_name(text) for image, text in labels.items()}
            if self._stamp_now() not in (None, self._stamp):
                raise UsageError(
                    f"{self.path} was changed by another program, so it was not overwritten.",
                    "Start label again: it continues with the labels of the file.",
                )
            previous = {image: self.label(image) for image in names}
            added = [image for image in names if image not in self._line_of]
            for image, name in names.items():
                self._put(image, name)
            try:
                write_csv(self.path, COLUMNS, self._lines)
            except BaseException:
                for image, name in previous.items():
                    self._put(image, name)
                for image in added:
                    del self._line_of[image]
                del self._lines[len(self._lines) - len(added) :]
                raise
            self._stamp = self._stamp_now()
            self.classes += sorted({*names.values()} - {"", *self.classes})
            return previous

    def _put(self, image: int, name: str) -> None:
        if image in self._line_of:
            self._lines[self._line_of[image]][1] = name
        else:
            self._add(image, name)

    def close(self) -> None:
        """Refuse further labels; one that is being written is completed first."""
        with self._lock:
            self._closed = True

    def _class_name(self, label: str) -> str:
        """The label as `finetune --labels` will read it; UsageError if it cannot be a class."""
        if not label or label in self.classes:
            return label
        name = normalize_labels([label.strip()])[0] or ""
        if name in self.classes:
            return name
        return checked_class_name(name, self.classes)

    def _add(self, image: int, label: str) -> None:
        split = int(self._index.splits[image])
        words = self._split if split == NONE else SPLIT_NAMES[split]
        self._line_of[image] = len(self._lines)
        self._lines.append([self._index.paths[image], label, words or ""])

    def _match(self) -> dict[int, int]:
        """Position of an image -> its line."""
        lookup, lines = ImageLookup(self._index.paths), dict[int, int]()
        for number, (path, *_) in enumerate(self._lines):
            image = lookup(path)
            if image is None:
                continue
            if image == AMBIGUOUS or image in lines:
                several = "matches several images" if image == AMBIGUOUS else "is listed twice"
                raise DataError(f"{self.path}: {path!r} {several}.", "Correct that line.")
            lines[image] = number
        return lines

    def _stamp_now(self) -> tuple[int, int, int] | None:
        """What changes when a file is written; None if there is none."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def checked_class_name(name: str, classes: Sequence[str]) -> str:
    """The name of a new class; UsageError if `finetune --labels` would read something else."""
    if not name or len(name) > _LONGEST or not name.isprintable() or name != name.strip():
        raise UsageError(
            f"{name[:40]!r} cannot be a class.", f"Use a name of 1 to {_LONGEST} characters."
        )
    if sign := next((sign for sign in SEPARATORS if sign in name), None):
        raise UsageError(
            f"{name!r} would be read as several labels.", f"Use a name without {sign!r}."
        )
    if (other := similar_name(name, classes)) is not None:
        raise UsageError(
            f"{name!r} and {other!r} differ only by case or spaces.", "Use the existing class."
        )
    if (read := normalize_label_column([*classes, name])[-1]) != name:
        raise UsageError(f"{name!r} would be read as {read or 'no label'!r}.", "Use another name.")
    return name


def _read_lines(path: Path) -> list[list[str]]:
    """The lines below the head, three cells each."""
    try:
        lines = read_csv(path)[1:]
    except (OSError, csv.Error) as error:
        raise UsageError(f"--out {path} cannot be read: {error}.", "Name a new file.") from error
    long = next((line for line in lines if any(line[len(COLUMNS) :])), None)
    if long is not None:
        raise DataError(
            f"{path}: the line of {long[0]!r} has more than {len(COLUMNS)} fields.",
            "Quote names that contain commas.",
        )
    return [[*line, "", ""][: len(COLUMNS)] for line in lines]
