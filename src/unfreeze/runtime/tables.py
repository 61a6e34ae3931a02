"""CSV as all of our tables are written and read: UTF-8, names as text, quoted where needed."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from unfreeze.runtime import atomic
from unfreeze.text import as_text, clean, has_halves


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """The rows, one a line; a cell that is a name the system gave stands as its text."""
    held = io.StringIO()
    plain = csv.writer(held, lineterminator="\n")
    # Python's writer leaves a carriage return without quotes, and its reader refuses that
    quoted = csv.writer(held, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        cells = [as_text(c) if isinstance(c, str) and has_halves(c) else c for c in row]
        odd = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (quoted if odd else plain).writerow(cells)
    return held.getvalue()


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns and rows at `path`, whole or not at all."""
    atomic.write_text(path, csv_text([columns, *rows]))


def read_csv(path: str | Path) -> list[list[str]]:
    """Every row of one of our tables, its columns first; OSError or csv.Error where it is none.

    Bytes that are no UTF-8, which somebody may have typed into it, are read as in names.
    """
    text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    rows = csv.reader(io.StringIO(clean(text), newline=""))
    return [row for row in rows if row]


def records(path: str | Path) -> list[dict[str, str]]:
    """The rows below the columns, by column."""
    rows = read_csv(path)
    return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]
