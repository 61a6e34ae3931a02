"""A table that lists pictures lying beside it by `path`, maybe with `label`, `split`, `group`."""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from unfreeze.data.sources.folder import FileSource
from unfreeze.errors import DataError


class FileListSource(FileSource):
    """The files that a table names, in its order; paths are relative to the table's own folder.

    A missing file, a missing `path` column and a path listed twice are DataErrors that name the
    place: `places` holds "line 3" or "row 3" for each entry.
    """

    listed = True

    def __init__(self, path: Path, columns: Mapping[str, list[str]], places: Sequence[str]) -> None:
        self.where = str(path)
        names = columns.get("path")
        if names is None:
            raise DataError(
                f"{path} has no column `path`; it has {', '.join(columns) or 'none'}.",
                "Name the columns path, label and, if you like, split and group.",
            )
        names = [name.replace("\\", "/") if os.sep == "\\" else name for name in names]
        _refuse_twice(path, names, places)
        stats = [_status(path, name, place) for name, place in zip(names, places, strict=True)]
        super().__init__(path.parent, names, stats)
        self.labels = columns.get("label")
        self.splits = columns.get("split")
        self.groups = columns.get("group")


def _refuse_twice(path: Path, names: list[str], places: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for name, place in zip(names, places, strict=True):
        if first.setdefault(name, place) != place:
            kind, _, number = place.partition(" ")
            raise DataError(
                f"{path} lists {name} twice, on {kind}s {first[name].partition(' ')[2]} and "
                f"{number}.",
                f"Keep one of the two {kind}s.",
            )


def _status(path: Path, name: str, place: str) -> tuple[int, int]:
    try:
        status = os.stat(path.parent / name)  # noqa: PTH116
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}, {place}: there is no file {name!r} beside the {path.suffix[1:].upper()}.",
            "Paths are relative to the folder of the list.",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        kind = place.partition(" ")[0]
        raise DataError(f"{path}, {place}: {name!r} is no file.", f"Name one picture a {kind}.")
    return status.st_size, status.st_mtime_ns
