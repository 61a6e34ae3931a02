"""Reads and writes CSV files: UTF-8, file names as text, quoted where needed."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from unfreeze.runtime import atomic
from unfreeze.text import as_text, clean, has_halves


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """The rows as CSV; file names with invalid UTF-8 are escaped."""
    buffer = io.StringIO()
    plain = csv.writer(buffer, lineterminator="\n")
    # csv.writer does not quote carriage returns, which csv.reader refuses unquoted
    quoted = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        cells = [as_text(c) if isinstance(c, str) and has_halves(c) else c for c in row]
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (quoted if has_return else plain).writerow(cells)
    return buffer.getvalue()


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write columns and rows to `path` atomically."""
    atomic.write_text(path, csv_text([columns, *rows]))


def read_csv(path: str | Path) -> list[list[str]]:
    """All rows of a CSV file, the columns first; OSError or csv.Error if it cannot be read.

    Bytes that are not valid UTF-8 are escaped as in file names.
    """
    text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    rows = csv.reader(io.StringIO(clean(text), newline=""))
    return [row for row in rows if row]


def records(path: str | Path) -> list[dict[str, str]]:
    """The rows as dictionaries by column."""
    rows = read_csv(path)
    return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]
