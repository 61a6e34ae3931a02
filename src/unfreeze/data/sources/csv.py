"""A CSV that lists pictures: `path`, and where given `label`, `split`, `group`."""

import csv
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from sys import intern

from unfreeze.data.sources.folder import FileSource
from unfreeze.errors import DataError


class CsvSource(FileSource):
    """The files a CSV names, in its order; paths are relative to the CSV's own folder.

    A missing file, a missing `path` column and a path listed twice are DataErrors with the line.
    """

    kind = "csv"

    def __init__(self, path: Path) -> None:
        self.where, self._csv = str(path), path
        columns, lines = _table(path)
        names = columns.get("path")
        if names is None:
            raise DataError(
                f"{path} has no column `path`; it has {', '.join(columns) or 'none'}.",
                "Name the columns path, label and, if you like, split and group.",
            )
        names = [name.replace("\\", "/") if os.sep == "\\" else name for name in names]
        _refuse_twice(path, names, lines)
        super().__init__(path.parent, names, list(_statuses(path, names, lines)))
        self.labels = columns.get("label")
        self.splits = columns.get("split")
        self.groups = columns.get("group")

    def column(self, name: str) -> list[str] | None:
        """Any column of the CSV, read again from it."""
        return _table(self._csv)[0].get(name)


def _table(path: Path) -> tuple[dict[str, list[str]], list[int]]:
    """Columns by name, stripped, and the line each row ends on."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            rows: list[list[str]] = []
            lines: list[int] = []
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, "
                        f"but the header names {len(header)}.",
                        "Quote fields that contain commas.",
                    )
                rows.append([intern(field.strip()) for field in row])
                lines.append(reader.line_num)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no CSV in UTF-8: {error}.", "Save it as comma-separated UTF-8."
        ) from error
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}, lines


def _refuse_twice(path: Path, names: list[str], lines: list[int]) -> None:
    first: dict[str, int] = {}
    for name, line in zip(names, lines, strict=True):
        if first.setdefault(name, line) != line:
            raise DataError(
                f"{path} lists {name} twice, on lines {first[name]} and {line}.",
                "Keep one of the two lines.",
            )


def _statuses(path: Path, names: list[str], lines: list[int]) -> Iterator[tuple[int, int]]:
    """Size and time of change of each file."""
    folder = str(path.parent)  # a Path for each of a million names takes longer than asking for it
    for name, line in zip(names, lines, strict=True):
        yield _status(path, folder, name, line)


def _status(path: Path, folder: str, name: str, line: int) -> tuple[int, int]:
    try:
        status = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}, line {line}: there is no file {name!r} beside the CSV.",
            "Paths are relative to the folder of the CSV.",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}, line {line}: {name!r} is no file.", "Name one picture a line.")
    return status.st_size, status.st_mtime_ns
