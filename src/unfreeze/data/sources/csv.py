"""A CSV of image paths, optionally with labels, splits and groups."""

import os
from pathlib import Path

from unfreeze.data.sources.delimited import read_delimited
from unfreeze.data.sources.filelist import FileListSource
from unfreeze.data.sources.roles import named
from unfreeze.text import as_name


class CsvSource(FileListSource):
    """The files listed in a CSV, in order; paths are relative to the folder of the CSV."""

    kind = "csv"

    def __init__(self, path: Path) -> None:
        self._csv = path
        table = read_delimited(path, exists=self._exists)
        super().__init__(path, table.columns, table.lines, table.notes)

    def column(self, name: str) -> list[str] | None:
        """A column of the CSV, read again."""
        columns = read_delimited(self._csv, exists=self._exists).columns
        match = named(columns, name)
        return None if match is None else columns[match]

    def _exists(self, name: str) -> bool:
        return bool(name) and os.path.lexists(self._csv.parent / as_name(name))
