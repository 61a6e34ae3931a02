"""Lists as people and spreadsheets write them: any separator and encoding, read in one way.

Commas, semicolons, tabs and bars; UTF-8, UTF-16 and Windows-1252; packed by gzip. What is no text
is refused as what it is.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from unfreeze.data.signatures import HEAD, known, named_as_image
from unfreeze.data.sources.roles import two_columns
from unfreeze.errors import DataError
from unfreeze.text import as_text, clean, has_halves

SEPARATORS = ",;\t|"
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")  # of what is read as a list
_UNPACKED = 2**30  # bytes of a packed list; more is no list
_SNIFFED = 2**16  # characters that tell the separator
_ROWS = 50  # rows that tell it
_SHARED = 2**16  # different texts of a column that are held once
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_GZIP = b"\x1f\x8b"
_BINARY = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook (.xls)"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"%PDF", "a PDF"),
    (b"BZh", "packed by bzip2"),
    (b"\xfd7zXZ\x00", "packed by xz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
)
_ZIPPED = (
    (b"xl/", "an Excel workbook (.xlsx)"),
    (b"opendocument.spreadsheet", "an OpenDocument spreadsheet (.ods)"),
    (b"word/", "a Word document"),
)
_RARE = 20  # letters of a text to each control character, at least
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f]")


class DelimitedTable(NamedTuple):
    """A list's columns by name, and the line that each row ends on.

    `notes`: sentences about what had to be guessed.
    """

    columns: dict[str, list[str]]
    lines: list[int]
    notes: tuple[str, ...]


def read_delimited(
    path: Path, *, exists: Callable[[str], bool] | None = None, strip: bool = True
) -> DelimitedTable:
    """The list at `path`; DataError where it cannot be read, with its line.

    Text that is not UTF-8 is Windows-1252, but where `exists` knows a field as it stands: names on
    a disk may be any bytes. These then stand, as everywhere, as their text.
    """
    data = _bytes(path)
    text, sure = _text(path, data)
    notes: tuple[str, ...] = ()
    if not sure:
        western = _western(data)
        raw = any(map(exists, _not_utf_8(path, text))) if exists is not None else False
        if western is not None and not raw:
            text = western
            notes = (f"{path} is not UTF-8: it is read as Windows-1252.",)
    _refuse_other(path, text)
    columns, lines = _table(path, text)
    if has_halves(text):
        columns = {clean(name): _texts(column) for name, column in columns.items()}
    if strip:
        columns = {name: [*map(str.strip, column)] for name, column in columns.items()}
    return DelimitedTable(columns, lines, notes)


def _texts(column: Sequence[str]) -> list[str]:
    return [as_text(value) if has_halves(value) else value for value in column]


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(_UNPACKED + 1)
            if len(data) > _UNPACKED:
                raise DataError(f"{path} unpacks to more than any list has.", "Unpack it yourself.")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is packed by gzip, and cut or damaged: {error}.", "Fetch it again."
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}.", "Name a CSV or a Parquet file."
        ) from error
    what = _binary(data)
    if what is not None:
        raise _no_list(path, what)
    return data


def _binary(data: bytes) -> str | None:
    """What a file is that is no text, by its first bytes."""
    if data.startswith(b"PK\x03\x04"):
        return next((what for sign, what in _ZIPPED if sign in data), "a zip archive")
    found = next((what for sign, what in _BINARY if data.startswith(sign)), None)
    if found is None and (image := known(data[:HEAD])) is not None and image != "PNM":
        return f"an image ({image})"
    return found


def _no_list(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} is {what}, not a list in text.",
        "Save it as CSV (in Excel: Save As, CSV UTF-8) with a column for the images and one for "
        "the labels.",
    )


def _text(path: Path, data: bytes) -> tuple[str, bool]:
    """(the text, whether its encoding is sure); bytes that are not UTF-8 become surrogates."""
    try:
        for mark, encoding in (*_MARKS, *_unmarked(data)):
            if data.startswith(mark):
                return data.decode(encoding), True
        return data.decode("utf-8"), True
    except UnicodeDecodeError as error:
        if error.encoding.startswith(("utf-16", "utf-32")):
            raise DataError(
                f"{path} begins like {error.encoding.upper()} and is none: {error.reason}.",
                "Save it as CSV in UTF-8.",
            ) from error
        return data.decode("utf-8-sig", "surrogateescape"), False


def _unmarked(data: bytes) -> list[tuple[bytes, str]]:
    """UTF-16 without its mark: every other byte of plain text is 0."""
    head = data[:1024]
    if len(head) < 4 or len(data) % 2:
        return []
    zeros = head[1::2].count(0) * 4 > len(head), head[::2].count(0) * 4 > len(head)
    if zeros == (True, False):
        return [(b"", "utf-16-le")]
    return [(b"", "utf-16-be")] if zeros == (False, True) else []


def _western(data: bytes) -> str | None:
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return None


def _not_utf_8(path: Path, text: str) -> Iterator[str]:
    """The fields with bytes that are not UTF-8."""
    columns, _ = _table(path, text)
    for column in columns.values():
        yield from map(as_text, filter(has_halves, column))


def _refuse_other(path: Path, text: str) -> None:
    """DataError for text that is no list, and for what is no text."""
    start = text.lstrip()[:1]
    if not start:
        raise DataError(f"{path} is empty.", "Name a CSV with a line for each image.")
    if start in ("{", "["):
        raise _no_list(path, "JSON")
    if start == "<":
        raise _no_list(path, "HTML or XML")
    some = text[:_SNIFFED].removesuffix("\x1a")
    # a name may hold one of these; what is no text holds many
    if "\0" in text or len(_CONTROL.findall(some)) * _RARE > len(some):
        raise _no_list(path, "binary data")


def _table(path: Path, text: str) -> tuple[dict[str, list[str]], list[int]]:
    text, separator = _separated(text.removesuffix("\x1a"))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    lines: list[int] = []
    try:
        header = [name.strip() for name in next(filter(any, reader), [])]
        _refuse_header(path, header)
        columns: list[list[str]] = [[] for _ in header]
        share = [_Shared() for _ in header]
        for row in reader:
            if not any(map(str.strip, row)):
                continue  # spreadsheets end in rows of nothing
            if len(row) < len(header) or any(map(str.strip, row[len(header) :])):
                raise _uneven(path, reader.line_num, row, header, separator)
            for column, shared, value in zip(columns, share, row[: len(header)], strict=True):
                column.append(shared(value))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: it is no list: {error}.", "Save it as CSV in UTF-8."
        ) from error
    return _named(header, columns), lines


class _Shared:
    """Each text once, as many rows have few labels; of very many different ones not all."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        found = self._seen.get(text)
        if found is None and len(self._seen) < _SHARED:
            self._seen[text] = text
        return text if found is None else found


def _separated(text: str) -> tuple[str, str]:
    """(the text without a line `sep=;`, the separator): what gives the most even rows."""
    told = re.match(r"sep=(.)\r?\n", text)
    if told is not None:
        return text[told.end() :], told[1]
    head = text[:_SNIFFED]
    best, chosen = (False, 1), ","
    for separator in SEPARATORS:
        rows = _head_rows(head, separator, whole=len(head) == len(text))
        if rows and len(rows[0]) > 1:
            found = all(len(row) == len(rows[0]) for row in rows), len(rows[0])
            if found > best:
                best, chosen = found, separator
    return text, chosen


def _head_rows(head: str, separator: str, *, whole: bool) -> list[list[str]]:
    reader = csv.reader(io.StringIO(head, newline=""), delimiter=separator)
    try:
        rows = [row for row in islice(reader, _ROWS) if any(map(str.strip, row))]
    except csv.Error:
        return []
    # the last row of a part may be half of one
    return rows if whole or len(rows) < 2 else rows[:-1]


def _refuse_header(path: Path, header: Sequence[str]) -> None:
    if any(map(named_as_image, header)):
        raise DataError(
            f"The first line of {path} names no columns: {', '.join(header)[:80]}.",
            "Put a line with their names above: path,label.",
        )
    twice = next((n for place, n in enumerate(header) if n and n in header[:place]), None)
    if twice is not None:
        raise two_columns(path, twice, twice)


def _uneven(
    path: Path, line: int, row: Sequence[str], header: Sequence[str], separator: str
) -> DataError:
    what = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}.get(separator, separator)
    opened = any("\n" in value for value in row)
    return DataError(
        f"{path}, line {line}: {len(row)} fields, but the header names {len(header)}.",
        "A quote is opened there and not closed." if opened else f"Quote fields that hold {what}.",
    )


def _named(header: Sequence[str], columns: Sequence[list[str]]) -> dict[str, list[str]]:
    """By name; columns without a name are left out (the row numbers that pandas writes)."""
    return {name: column for name, column in zip(header, columns, strict=True) if name}
