"""A table that lists pictures lying beside it by `path`, maybe with `label`, `split`, `group`."""

import os
import stat
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
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
        super().__init__(path.parent, names, *self._statuses(path, names, lines))
        self.labels = columns.get("label")
        self.splits = columns.get("split")
        self.groups = columns.get("group")

    def _refuse_twice(self, names: Sequence[str], lines: Sequence[int]) -> None:
        if len(set(names)) == len(names):
            return
        first: dict[str, int] = {}
        for name, line in zip(names, lines, strict=True):
            if first.setdefault(name, line) != line:
                raise DataError(
                    f"{self.where} lists {name} twice, on {self.line}s {first[name]} and {line}.",
                    f"Keep one of the two {self.line}s.",
                )

    def _statuses(
        self, path: Path, names: Sequence[str], lines: Sequence[int]
    ) -> "tuple[array[int], array[int]]":
        """Sizes and times of change of the files."""
        sizes, times = array("q"), array("q")
        # from a folder that is open already: a million long paths are not followed from the root
        with _opened(path.parent) as ask:
            for name, line in zip(names, lines, strict=True):
                try:
                    status = ask(name)
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
                sizes.append(status.st_size)
                times.append(status.st_mtime_ns)
        return sizes, times


@contextmanager
def _opened(folder: Path) -> Iterator[Callable[[str], os.stat_result]]:
    """Asks for the status of a file by its name relative to `folder`, links followed."""
    if os.stat not in os.supports_dir_fd:
        yield lambda name: os.stat(folder / name)  # noqa: PTH116
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        yield partial(os.stat, dir_fd=place)
    finally:
        os.close(place)
