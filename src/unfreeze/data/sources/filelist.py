"""A table that lists pictures lying beside it by `path`, maybe with `label`, `split`, `group`."""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from unfreeze.data.sources.folder import FileSource
from unfreeze.errors import DataError


class FileListSource(FileSource):
    """The files that a table names, in its order; paths are relative to the table's own folder.

    A missing file, a missing `path` column and a path listed twice are DataErrors that name the
    place: `lines` holds the number of each entry, and `line` is what that counts.
    """

    listed = True
    line = "line"

    def __init__(self, path: Path, columns: Mapping[str, list[str]], lines: Sequence[int]) -> None:
        self.where = str(path)
        names = columns.get("path")
        if names is None:
            raise DataError(
                f"{path} has no column `path`; it has {', '.join(columns) or 'none'}.",
                "Name the columns path, label and, if you like, split and group.",
            )
        names = [name.replace("\\", "/") if os.sep == "\\" else name for name in names]
        self._refuse_twice(names, lines)
        super().__init__(path.parent, names, list(self._statuses(path, names, lines)))
        self.labels = columns.get("label")
        self.splits = columns.get("split")
        self.groups = columns.get("group")

    def _refuse_twice(self, names: Sequence[str], lines: Sequence[int]) -> None:
        first: dict[str, int] = {}
        for name, line in zip(names, lines, strict=True):
            if first.setdefault(name, line) != line:
                raise DataError(
                    f"{self.where} lists {name} twice, on {self.line}s {first[name]} and {line}.",
                    f"Keep one of the two {self.line}s.",
                )

    def _statuses(
        self, path: Path, names: Sequence[str], lines: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Size and time of change of each file."""
        folder = str(path.parent)  # a Path for each of a million names takes longer than asking
        for name, line in zip(names, lines, strict=True):
            try:
                status = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{path}, {self.line} {line}: there is no file {name!r} beside the list.",
                    "Paths are relative to the folder of the list.",
                ) from error
            if not stat.S_ISREG(status.st_mode):
                raise DataError(
                    f"{path}, {self.line} {line}: {name!r} is no file.",
                    f"Name one picture a {self.line}.",
                )
            yield status.st_size, status.st_mtime_ns
