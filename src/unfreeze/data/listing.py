"""What a list says about images that lie elsewhere: labels, splits and groups, joined by name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unfreeze.data.sources.delimited import read_delimited
from unfreeze.data.sources.lookup import SEVERAL, Lookup
from unfreeze.data.sources.parquet import read_columns
from unfreeze.data.sources.roles import guessed, lacking, plain_labels, roles
from unfreeze.errors import DataError, UsageError


@dataclass(frozen=True)
class Listing:
    """Columns for some names, one entry a name; "" where the list says nothing.

    `columns` holds `label`, `split` and `group` under these names where they are there, and every
    column under its own. `listed`: whether the list names the image at all.
    """

    where: str
    columns: dict[str, list[str]]
    listed: list[bool]
    notes: tuple[str, ...] = ()


def read_listing(
    path: Path, names: Sequence[str], *, needs: str, label: str | None = None
) -> Listing:
    """The columns of the list or Parquet file at `path` for the images called `names`.

    Which image a line names, `Lookup` says; which column says what, `roles`. `label` names the
    column of the labels. DataError where the file or the column `needs` is not there, a line fits
    several images or two lines one, or none fits any.
    """
    lookup = Lookup(names)
    columns, notes = _read(path, lookup)
    found = roles(columns, path, label=label, names_image=lambda text: lookup(text) is not None)
    for role in ("path", needs):
        if role not in found:
            raise lacking(columns, path, role)
    line_of, lost = _joined(path, columns[found["path"]], lookup)
    spread = {name: _spread(line_of, column) for name, column in columns.items()}
    for role, name in found.items():
        if role == "label" == needs:
            spread[role] = plain_labels(spread[name])
        elif role != "path":
            spread[role] = spread[name]
    notes += guessed(found, path, label)
    if lost:
        said = f"Lines of {path} that match no image: {len(lost):,} (first: {lost[0]})."
        notes += (said,)
    return Listing(str(path), spread, [line is not None for line in line_of], notes)


def read_pattern(pattern: str, names: Sequence[str]) -> Listing:
    """Labels as the first group of `pattern` in each name; UsageError where it says nothing."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"--labels {pattern} is neither a file nor a valid pattern: {error}."
        ) from error
    found = [compiled.search(name) for name in names]
    if not compiled.groups or not any(found):
        raise UsageError(
            f"--labels {pattern} is not a file, and as a pattern it matches no image path.",
            r"Give a CSV, or a pattern with one group, such as '([a-z]+)_\d+\.jpg'.",
        )
    labels = [(match[1] or "") if match else "" for match in found]
    return Listing(pattern, {"label": labels}, [bool(label) for label in labels])


def _read(path: Path, lookup: Lookup) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """The columns of text, and sentences about them."""
    if path.name.lower().endswith(".parquet"):
        return read_columns(path), ()
    table = read_delimited(path, exists=lambda text: lookup(text) is not None)
    return table.columns, table.notes


def _joined(path: Path, asked: Sequence[str], lookup: Lookup) -> tuple[list[int | None], list[str]]:
    """For each image the place of the line that names it, and what names none."""
    names = lookup.names
    line_of: list[int | None] = [None] * len(names)
    lost: list[str] = []
    for line, given in enumerate(asked):
        place = lookup(given)
        if place is None:
            lost.append(given)
            continue
        if place == SEVERAL:
            raise DataError(
                f"{path}: {given!r} matches several images.",
                "Use the full path within the dataset.",
            )
        if line_of[place] is not None:
            raise DataError(
                f"{path} lists {names[place]} twice, as {asked[line_of[place] or 0]!r} and "
                f"{given!r}.",
                "Remove one of the two lines.",
            )
        line_of[place] = line
    if len(lost) == len(asked):
        raise DataError(
            f"{path} matches none of the {len(names):,} images (its first: {''.join(lost[:1])!r}).",
            f"Use paths as in the dataset, such as {names[0]!r}." if names else "",
        )
    return line_of, lost


def _spread(line_of: Sequence[int | None], column: Sequence[str]) -> list[str]:
    return ["" if line is None else column[line] for line in line_of]
