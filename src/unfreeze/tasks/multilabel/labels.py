"""Labels of images that may have several: names with a separator, or columns of 0 and 1."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unfreeze.data.index.index import Index, build_index, with_splits_of
from unfreeze.data.index.labels import SEPARATORS, names_differing_by_case
from unfreeze.data.sources.source import Source
from unfreeze.errors import DataError, UsageError

UNKNOWN = "?"  # before the name of a class of which an image may or may not be
YES, NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
EMPTY = {"", "nan"}
LISTED = 12  # classes whose numbers of images are listed


def separator_of(labels: Sequence[str]) -> str:
    """`;` or `|`, whichever the labels have; `;` if they have neither."""
    return next((sign for sign in SEPARATORS if any(sign in label for label in labels)), ";")


def names_in(label: str, separator: str) -> list[str]:
    """The names in a label, each once; none in a label that is a separator alone."""
    return list(dict.fromkeys(name for part in label.split(separator) if (name := part.strip())))


def listed_names(words: Sequence[str]) -> tuple[str, ...]:
    """Names of `--label-columns`, which may be separated by commas."""
    names = tuple(name for word in words for part in word.split(",") if (name := part.strip()))
    if not names:
        raise UsageError("--label-columns names no column.", "Give one column for each class.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"--label-columns names {twice[0]!r} twice.", "Name each column once.")
    return names


def index_of_columns(
    source: Source,
    columns: Sequence[str],
    separator: str,
    arguments: Mapping[str, Any],
    classes: Sequence[str] = (),
) -> Index:
    """The images with a label as text that says what the columns say: `cat;?dog`, or `;` for none.

    `arguments`: those of `build_index`. `classes`: classes of a model; those without a column are
    unknown. Images whose fields are all empty are unlabelled.
    """
    file = arguments.get("labels")
    if arguments.get("label_column") is not None:
        raise UsageError("--label-columns and --label-column exclude each other.", "Omit one.")
    named = {"labels": file, "label_column": columns[0]} if file is not None else {}
    index = build_index(source, strange_classes=True, label_sets=True, **named)
    names = [unicodedata.normalize("NFC", name) for name in columns]
    _check_names(names, separator, classes)
    missing = [UNKNOWN + name for name in classes if name not in names]
    texts = [list[str]() for _ in index.paths]
    known = np.zeros(len(index), np.bool_)
    for name, column in zip(names, columns, strict=True):
        fields = index.column(column)
        if fields is None:
            raise DataError(
                f"{source.where} has no column {column!r}, which --label-columns names.",
                "Name columns of DATA, or give their file with --labels.",
            )
        for position, field in enumerate(fields):
            word = field.strip().lower()
            if word in YES:
                texts[position].append(name)
            elif word in EMPTY:
                texts[position].append(UNKNOWN + name)
            elif word not in NO:
                raise DataError(
                    f"{index.paths[position]} has {field!r} in the column {column!r}.",
                    "Use 1, 0, or an empty field if it is not known.",
                )
            known[position] |= word not in EMPTY
    labels = [separator.join([*text, *missing]) or separator for text in texts]
    distinct = sorted({label for label, some in zip(labels, known, strict=True) if some})
    numbers = {label: number for number, label in enumerate(distinct)}
    ids = [numbers[label] if some else -1 for label, some in zip(labels, known, strict=True)]
    layout: Any = "splits" if index.splits.any() else "classes"
    index = replace(
        index,
        labels=np.array(ids, np.int32),
        classes=tuple(distinct),
        layout=layout,
        doubt=None,
    )
    split_from = arguments.get("split_from")
    return index if split_from is None else with_splits_of(index, split_from)


def _check_names(names: Sequence[str], separator: str, classes: Sequence[str]) -> None:
    for name in names:
        if separator in name or name.startswith(UNKNOWN):
            raise UsageError(
                f"The column {name!r} has {separator!r} in its name, or begins with {UNKNOWN!r}.",
                "Rename it, or give another --label-separator.",
            )
        if classes and name not in classes:
            raise DataError(
                f"The model has no class {name!r}; its classes are {', '.join(classes)}.",
                "Leave it out of --label-columns.",
            )


def label_notes(index: Index, separator: str, *, columns: bool) -> tuple[str, ...]:
    """For people: the number of images with each label and with none; names that are alike."""
    counts, none = Counter[str](), 0
    sizes = np.bincount(index.labels[index.labels >= 0], minlength=len(index.classes))
    for label, size in zip(index.classes, sizes.tolist(), strict=True):
        names = names_in(label, separator)
        names = [name for name in names if not (columns and name.startswith(UNKNOWN))]
        counts.update(dict.fromkeys(names, size))
        none += 0 if names else size
    if len(counts) > LISTED:
        text = f"{len(counts):,} of {min(counts.values()):,} to {max(counts.values()):,} images"
    else:
        text = ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts))
    where = "in columns" if columns else f"separated by {separator!r}"
    notes = [f"Several labels for an image, {where}: {text}; {none:,} images have none."]
    for group in names_differing_by_case(counts):
        names_text = ", ".join(map(repr, group))
        notes.append(f"The labels {names_text} differ only by case or spaces: separate classes.")
    return tuple(notes)
