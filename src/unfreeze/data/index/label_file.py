"""Label files: labels, splits and groups of images from a CSV or Parquet file, or a pattern."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unfreeze.data.sources.columns import (
    find_columns,
    guessed_column_notes,
    missing_column_error,
    normalize_label_column,
)
from unfreeze.data.sources.delimited import read_delimited
from unfreeze.data.sources.parquet import read_columns
from unfreeze.data.sources.paths import AMBIGUOUS, ImageLookup
from unfreeze.errors import DataError, UsageError


@dataclass(frozen=True)
class LabelFile:
    """Columns of a label file, one entry per image; "" for images that it does not list.

    `columns` has `label`, `split` and `group` under these names if they exist, and every column
    under its own name. `listed`: whether the file lists the image.
    """

    where: str
    columns: dict[str, list[str]]
    listed: list[bool]
    notes: tuple[str, ...] = ()


def read_listing(
    path: Path, names: Sequence[str], *, needs: str, label: str | None = None
) -> LabelFile:
    """The columns of the CSV or Parquet file at `path`, joined to the images `names`.

    `ImageLookup` matches lines to images; `label` is the label column, else found by its name.
    DataError if the file or the column `needs` is missing, a line matches several images, two lines
    match the same image, or no line matches any.
    """
    lookup = ImageLookup(names)
    columns, notes = _read(path, lookup)
    columns_by_role = find_columns(
        columns, path, label=label, names_image=lambda text: lookup(text) is not None
    )
    for role in ("path", needs):
        if role not in columns_by_role:
            raise missing_column_error(columns, path, role)
    line_of, unmatched = _match_lines(path, columns[columns_by_role["path"]], lookup)
    joined = {name: _by_image(line_of, column) for name, column in columns.items()}
    for role, name in columns_by_role.items():
        if role == "label" == needs:
            joined[role] = normalize_label_column(joined[name])
        elif role != "path":
            joined[role] = joined[name]
    notes += guessed_column_notes(columns_by_role, path, label)
    if unmatched:
        note = f"Lines of {path} that match no image: {len(unmatched):,} (first: {unmatched[0]})."
        notes += (note,)
    return LabelFile(str(path), joined, [line is not None for line in line_of], notes)


def read_pattern(pattern: str, names: Sequence[str]) -> LabelFile:
    """Labels from the first group of a regular expression; UsageError if it does not match."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"--labels {pattern} is neither a file nor a valid pattern: {error}."
        ) from error
    matches = [compiled.search(name) for name in names]
    if not compiled.groups or not any(matches):
        raise UsageError(
            f"--labels {pattern} is not a file, and as a pattern it matches no image path.",
            r"Give a CSV, or a pattern with one group, such as '([a-z]+)_\d+\.jpg'.",
        )
    labels = [(match[1] or "") if match else "" for match in matches]
    return LabelFile(pattern, {"label": labels}, [bool(label) for label in labels])


def _read(path: Path, lookup: ImageLookup) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """(columns of text, notes about them)."""
    if path.name.lower().endswith(".parquet"):
        return read_columns(path), ()
    table = read_delimited(path, exists=lambda text: lookup(text) is not None)
    return table.columns, table.notes


def _match_lines(
    path: Path, paths: Sequence[str], lookup: ImageLookup
) -> tuple[list[int | None], list[str]]:
    """(for each image the index of its line or None, paths that match no image)."""
    names = lookup.names
    line_of: list[int | None] = [None] * len(names)
    unmatched: list[str] = []
    for line, listed_path in enumerate(paths):
        image = lookup(listed_path)
        if image is None:
            unmatched.append(listed_path)
            continue
        if image == AMBIGUOUS:
            raise DataError(
                f"{path}: {listed_path!r} matches several images.",
                "Use the full path within the dataset.",
            )
        if line_of[image] is not None:
            raise DataError(
                f"{path} lists {names[image]} twice, as {paths[line_of[image] or 0]!r} and "
                f"{listed_path!r}.",
                "Remove one of the two lines. Several labels of an image go into one line, as in "
                "`cat;dog`.",
            )
        line_of[image] = line
    if len(unmatched) == len(paths):
        raise DataError(
            f"{path} matches none of the {len(names):,} images "
            f"(its first: {''.join(unmatched[:1])!r}).",
            f"Use paths as in the dataset, such as {names[0]!r}." if names else "",
        )
    return line_of, unmatched


def _by_image(line_of: Sequence[int | None], column: Sequence[str]) -> list[str]:
    return ["" if line is None else column[line] for line in line_of]
