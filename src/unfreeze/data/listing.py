"""What a list says about pictures that lie elsewhere: labels, splits and groups, joined by name."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unfreeze.data.signatures import named_as_picture
from unfreeze.data.sources.parquet import read_columns
from unfreeze.errors import DataError, UsageError

# what such columns are called elsewhere; the first that is there counts
_ALIASES = {
    "path": (
        "path",
        "file",
        "filename",
        "file_name",
        "image",
        "image_path",
        "image_id",
        "name",
        "id",
    ),
    "label": ("label", "class", "category", "target"),
    "split": ("split", "set", "subset"),
    "group": ("group",),
}
_SEVERAL = -1


@dataclass(frozen=True)
class Listing:
    """Columns for some names, one entry a name; "" where the list says nothing.

    `columns` holds `label`, `split` and `group` under these names where they are there, and every
    column under its own. `listed`: whether the list names the picture at all.
    """

    where: str
    columns: dict[str, list[str]]
    listed: list[bool]
    notes: tuple[str, ...] = ()


def read_listing(path: Path, names: Sequence[str], *, needs: str) -> Listing:
    """The columns of the CSV or Parquet file at `path` for the pictures called `names`.

    A line names a picture by its path in the data, by an end of it, by a path of which it is the
    end, or by its bare name with or without the ending. DataError where the file or the column
    `needs` is not there, a line fits several pictures or two lines one, or none fits any.
    """
    header, lines = _read(path)
    found = {role: _column(header, role) for role in _ALIASES}
    for role in ("path", needs):
        if found[role] is None:
            raise DataError(
                f"{path} has no column `{role}`; it has {', '.join(header) or 'none'}.",
                f"Name the columns path and {needs}.",
            )
    line_of, lost = _joined(path, [line[found["path"] or 0] for line in lines], names)
    columns = {name: _spread(line_of, lines, place) for place, name in enumerate(header)}
    for role, place in found.items():
        if place is not None and role != "path":
            columns[role] = _spread(line_of, lines, place)
    said = f"Lines of {path} that name no picture: {len(lost):,} (the first: {''.join(lost[:1])})."
    listed = [line is not None for line in line_of]
    return Listing(str(path), columns, listed, (said,) if lost else ())


def read_pattern(pattern: str, names: Sequence[str]) -> Listing:
    """Labels as the first group of `pattern` in each name; UsageError where it says nothing."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--labels {pattern}: no file, and no pattern: {error}.") from error
    found = [compiled.search(name) for name in names]
    if not compiled.groups or not any(found):
        raise UsageError(
            f"--labels {pattern} is no file, and no picture's path has it as a pattern.",
            r"Name a CSV, or give a pattern with one group, as in '([a-z]+)_\d+\.jpg'.",
        )
    labels = [(match[1] or "") if match else "" for match in found]
    return Listing(pattern, {"label": labels}, [bool(label) for label in labels])


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    if path.name.lower().endswith(".parquet"):
        columns = read_columns(path)
        return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except (OSError, csv.Error) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(
            f"{path} cannot be read: {said}.", "Name a CSV or a Parquet file."
        ) from error
    if not rows:
        raise DataError(f"{path} is empty.", "Name a CSV with a line for each picture.")
    header = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise DataError(
                f"{path}, row {number}: {len(row)} fields, but the header names {len(header)}.",
                "Quote fields that contain commas.",
            )
    return header, [[field.strip() for field in row] for row in rows[1:]]


def _column(header: Sequence[str], role: str) -> int | None:
    known = [name.lower() for name in header]
    return next((known.index(alias) for alias in _ALIASES[role] if alias in known), None)


def _joined(
    path: Path, asked: Sequence[str], names: Sequence[str]
) -> tuple[list[int | None], list[str]]:
    """For each of `names` the place of the line that names it, and what names none."""
    ends, stems = _ends(names), _stems(names)
    whole = {name: place for place, name in enumerate(names)}
    line_of: list[int | None] = [None] * len(names)
    lost: list[str] = []
    for line, given in enumerate(asked):
        text = given.replace("\\", "/").removeprefix("./")
        place = whole.get(text, ends.get(text, _beyond(text, whole)))
        if place is None and "/" not in text and not named_as_picture(text):
            place = stems.get(text)
        if place is None:
            lost.append(given)
            continue
        if place == _SEVERAL:
            raise DataError(
                f"{path}: {given!r} may be any of several pictures.",
                "Write the path that it has in the data.",
            )
        if line_of[place] is not None:
            raise DataError(
                f"{path} names {names[place]} twice, as {asked[line_of[place] or 0]!r} and "
                f"{given!r}.",
                "Keep one of the two lines.",
            )
        line_of[place] = line
    if len(lost) == len(asked):
        raise DataError(
            f"{path} names none of the {len(names):,} pictures (its first: {''.join(lost[:1])}).",
            f"Paths must be those in the data, as {names[0]!r}." if names else "",
        )
    return line_of, lost


def _ends(names: Sequence[str]) -> dict[str, int]:
    """Every proper end of every path, to its place, or to _SEVERAL."""
    ends: dict[str, int] = {}
    for place, name in enumerate(names):
        rest = name.partition("/")[2]
        while rest:
            ends[rest] = _SEVERAL if rest in ends else place
            rest = rest.partition("/")[2]
    return ends


def _stems(names: Sequence[str]) -> dict[str, int]:
    stems: dict[str, int] = {}
    for place, name in enumerate(names):
        stem = name.rpartition("/")[2].rpartition(".")[0]
        stems[stem] = _SEVERAL if stem in stems else place
    return stems


def _beyond(text: str, whole: dict[str, int]) -> int | None:
    """The picture whose whole path is an end of `text`."""
    rest = text.partition("/")[2]
    while rest:
        if rest in whole:
            return whole[rest]
        rest = rest.partition("/")[2]
    return None


def _spread(line_of: Sequence[int | None], lines: list[list[str]], place: int) -> list[str]:
    return ["" if line is None else lines[line][place] for line in line_of]
