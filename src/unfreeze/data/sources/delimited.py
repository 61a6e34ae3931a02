"""CSV files of any separator and encoding.

Commas, semicolons, tabs and bars; UTF-8, UTF-16, UTF-32 and Windows-1252; gzip. Files that are not
text are refused, with their format in the message.
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

from unfreeze.data.images.signatures import HEAD, format_of_signature, has_image_suffix
from unfreeze.data.sources.columns import duplicate_column_error
from unfreeze.errors import DataError
from unfreeze.text import as_text, has_surrogates, without_surrogates

SEPARATORS = ",;\t|"
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")  # of files read as CSV
_UNPACKED_LIMIT = 2**30  # bytes of a decompressed CSV
_SNIFFED = 2**16  # characters used to detect the separator
_ROWS = 50  # rows used to detect it
_INTERNED = 2**16  # distinct texts per column that share memory
_BOMS = (
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
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
)
_ZIPPED = (
    (b"xl/", "an Excel workbook (.xlsx)"),
    (b"opendocument.spreadsheet", "an OpenDocument spreadsheet (.ods)"),
    (b"word/", "a Word document"),
)
_RARE = 20  # least number of characters per control character in text
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f]")


class DelimitedTable(NamedTuple):
    """The columns of a CSV by name, and the last line number of each row.

    `notes`: messages about the detected encoding.
    """

    columns: dict[str, list[str]]
    lines: list[int]
    notes: tuple[str, ...]


def read_delimited(
    path: Path,
    *,
    exists: Callable[[str], bool] | None = None,
    strip: bool = True,
    data: bytes | None = None,
) -> DelimitedTable:
    """The CSV at `path`; DataError with the line number if it is invalid. `strip`: strip fields.

    `data`: its bytes if it is inside an archive; `path` then only names it.

    Text that is not UTF-8 is decoded as Windows-1252, unless `exists` is true for an undecoded
    field: file names can be any bytes. These are then escaped, as in the rest of the package.
    """
    data = _bytes(path) if data is None else data
    text, certain = _text(path, data)
    notes: tuple[str, ...] = ()
    if not certain:
        decoded = _windows_1252(data)
        raw_names = any(map(exists, _not_utf_8(path, text))) if exists is not None else False
        if decoded is not None and not raw_names:
            text = decoded
            notes = (f"{path} is not UTF-8: read as Windows-1252.",)
    _refuse_other_formats(path, text)
    columns, lines = _table(path, text)
    if has_surrogates(text):
        columns = {without_surrogates(name): _texts(column) for name, column in columns.items()}
    if strip:
        columns = {name: [*map(str.strip, column)] for name, column in columns.items()}
    return DelimitedTable(columns, lines, notes)


def _texts(column: Sequence[str]) -> list[str]:
    return [as_text(value) if has_surrogates(value) else value for value in column]


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(_UNPACKED_LIMIT + 1)
            if len(data) > _UNPACKED_LIMIT:
                raise DataError(
                    f"{path} decompresses to more than {_UNPACKED_LIMIT:,} bytes.",
                    "Decompress it first if you trust it.",
                )
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is a truncated or corrupt gzip file: {error}.", "Download or write it again."
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}.",
            "Give a readable CSV or Parquet file.",
        ) from error
    kind = _binary(data)
    if kind is not None:
        raise _not_csv(path, kind)
    return data


def _binary(data: bytes) -> str | None:
    """The format of a binary file, by its first bytes; None for text."""
    if data.startswith(b"PK\x03\x04"):
        return next((kind for sign, kind in _ZIPPED if sign in data), "a zip archive")
    kind = next((kind for sign, kind in _BINARY if data.startswith(sign)), None)
    if kind is None and (image := format_of_signature(data[:HEAD])) is not None and image != "PNM":
        return f"an image ({image})"
    return kind


def _not_csv(path: Path, kind: str) -> DataError:
    return DataError(
        f"{path} is {kind}, not a CSV.",
        "Save it as CSV (in Excel: Save As, CSV UTF-8) with a column of image paths and one of "
        "labels.",
    )


def _text(path: Path, data: bytes) -> tuple[str, bool]:
    """(text, whether its encoding is certain); bytes that are not UTF-8 become surrogates."""
    try:
        for bom, encoding in (*_BOMS, *_without_bom(data)):
            if data.startswith(bom):
                return data.decode(encoding), True
        return data.decode("utf-8"), True
    except UnicodeDecodeError as error:
        if error.encoding.startswith(("utf-16", "utf-32")):
            raise DataError(
                f"{path} is not valid {error.encoding.upper()}: {error.reason}.",
                "Save it as CSV in UTF-8.",
            ) from error
        return data.decode("utf-8-sig", "surrogateescape"), False


def _without_bom(data: bytes) -> list[tuple[bytes, str]]:
    """Detects UTF-16 without a byte order mark: every other byte of plain text is 0."""
    head = data[:1024]
    if len(head) < 4 or len(data) % 2:
        return []
    zeros = head[1::2].count(0) * 4 > len(head), head[::2].count(0) * 4 > len(head)
    if zeros == (True, False):
        return [(b"", "utf-16-le")]
    return [(b"", "utf-16-be")] if zeros == (False, True) else []


def _windows_1252(data: bytes) -> str | None:
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return None


def _not_utf_8(path: Path, text: str) -> Iterator[str]:
    """The fields that contain bytes that are not UTF-8."""
    columns, _ = _table(path, text)
    for column in columns.values():
        yield from map(as_text, filter(has_surrogates, column))


def _refuse_other_formats(path: Path, text: str) -> None:
    """DataError for empty files, JSON, HTML and binary data."""
    start = text.lstrip()[:1]
    if not start:
        raise DataError(f"{path} is empty.", "Give a CSV with one line per image.")
    if start in ("{", "["):
        raise _not_csv(path, "JSON")
    if start == "<":
        raise _not_csv(path, "HTML or XML")
    start = text[:_SNIFFED].removesuffix("\x1a")
    # a file name can contain a control character; binary data contains many
    if "\0" in text or len(_CONTROL.findall(start)) * _RARE > len(start):
        raise _not_csv(path, "binary data")


def _table(path: Path, text: str) -> tuple[dict[str, list[str]], list[int]]:
    text, separator = _separated(text.removesuffix("\x1a"))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    lines: list[int] = []
    try:
        header = [name.strip() for name in next(filter(any, reader), [])]
        _refuse_header(path, header)
        columns: list[list[str]] = [[] for _ in header]
        interners = [_Interner() for _ in header]
        for row in reader:
            if not any(map(str.strip, row)):
                continue  # spreadsheets write empty rows at the end
            if len(row) < len(header) or any(map(str.strip, row[len(header) :])):
                raise _uneven(path, reader.line_num, row, header, separator)
            for column, intern, value in zip(columns, interners, row[: len(header)], strict=True):
                column.append(intern(value))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: invalid CSV: {error}.", "Save it as CSV in UTF-8."
        ) from error
    return _named(header, columns), lines


class _Interner:
    """Shares equal texts, up to a number of distinct ones: many rows have few labels."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        shared = self._texts.get(text)
        if shared is None and len(self._texts) < _INTERNED:
            self._texts[text] = text
        return text if shared is None else shared


def _separated(text: str) -> tuple[str, str]:
    """(text without the `sep=;` line, separator), chosen for rows of equal length."""
    declared = re.match(r"sep=(.)\r?\n", text)
    if declared is not None:
        return text[declared.end() :], declared[1]
    head = text[:_SNIFFED]
    best_score, best = (False, 1), ","
    for separator in SEPARATORS:
        rows = _head_rows(head, separator, complete=len(head) == len(text))
        if rows and len(rows[0]) > 1:
            score = all(len(row) == len(rows[0]) for row in rows), len(rows[0])
            if score > best_score:
                best_score, best = score, separator
    return text, best


def _head_rows(head: str, separator: str, *, complete: bool) -> list[list[str]]:
    reader = csv.reader(io.StringIO(head, newline=""), delimiter=separator)
    try:
        rows = [row for row in islice(reader, _ROWS) if any(map(str.strip, row))]
    except csv.Error:
        return []
    # the last row may be incomplete
    return rows if complete or len(rows) < 2 else rows[:-1]


def _refuse_header(path: Path, header: Sequence[str]) -> None:
    if any(map(has_image_suffix, header)):
        raise DataError(
            f"The first line of {path} contains no column names: {', '.join(header)[:80]}.",
            "Add a header line such as path,label.",
        )
    repeated = next((name for i, name in enumerate(header) if name and name in header[:i]), None)
    if repeated is not None:
        raise duplicate_column_error(path, repeated, repeated)


def _uneven(
    path: Path, line: int, row: Sequence[str], header: Sequence[str], separator: str
) -> DataError:
    plural = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}.get(separator, separator)
    unclosed = any("\n" in value for value in row)
    return DataError(
        f"{path}, line {line}: {len(row)} fields, but the header has {len(header)}.",
        "Close the quote that starts there."
        if unclosed
        else f"Quote fields that contain {plural}.",
    )


def _named(header: Sequence[str], columns: Sequence[list[str]]) -> dict[str, list[str]]:
    """Columns by name, without those that have no name (row numbers written by pandas)."""
    return {name: column for name, column in zip(header, columns, strict=True) if name}
