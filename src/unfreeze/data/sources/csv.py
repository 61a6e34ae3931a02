"""A CSV that lists pictures: `path`, and where given `label`, `split`, `group`."""

import csv
from pathlib import Path
from sys import intern

from unfreeze.data.sources.filelist import FileListSource
from unfreeze.errors import DataError


class CsvSource(FileListSource):
    """The files a CSV names, in its order; paths are relative to the CSV's own folder."""

    kind = "csv"

    def __init__(self, path: Path) -> None:
        self._csv = path
        columns, lines = _table(path)
        super().__init__(path, columns, lines)

    def column(self, name: str) -> list[str] | None:
        """Any column of the CSV, read again from it."""
        return _table(self._csv)[0].get(name)


def _table(path: Path) -> tuple[dict[str, list[str]], list[int]]:
    """Columns by name, stripped, and the line each row ends on."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            # paths are all different: there is nothing to share
            share = [str if name == "path" else intern for name in header]
            columns: list[list[str]] = [[] for _ in header]
            lines: list[int] = []
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, "
                        f"but the header names {len(header)}.",
                        "Quote fields that contain commas.",
                    )
                for column, shared, field in zip(columns, share, row, strict=True):
                    column.append(shared(field.strip()))
                lines.append(reader.line_num)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no CSV in UTF-8: {error}.", "Save it as comma-separated UTF-8."
        ) from error
    return dict(zip(header, columns, strict=True)), lines
