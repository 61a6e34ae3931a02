"""A CSV of image paths, optionally with labels, splits and groups."""

import functools
import os
import stat
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from unfreeze.data.images.signatures import has_image_suffix
from unfreeze.data.sources.columns import (
    find_column,
    find_columns,
    guessed_column_notes,
    missing_column_error,
    normalize_label_column,
)
from unfreeze.data.sources.delimited import read_delimited
from unfreeze.data.sources.folder import FileSource, FolderSource
from unfreeze.data.sources.paths import AMBIGUOUS, ImageLookup, path_variants
from unfreeze.errors import DataError
from unfreeze.text import as_name, as_text


class FileTableSource(FileSource):
    """The files listed in a table, in order; paths are relative to the folder of the table.

    A path that does not exist is matched with the images in that folder as for `--labels`: names
    without suffix, backslashes, paths of another machine. DataError if a file is missing or listed
    twice, or if there is no column of paths. `lines`: line number of each entry, for errors;
    `line`: the word for it ("line" or "row").
    """

    listed = True
    line = "line"

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, list[str]],
        lines: Sequence[int],
        notes: tuple[str, ...] = (),
        label: str | None = None,
    ) -> None:
        self.where = str(path)
        by_role = find_columns(columns, path, label=label, names_image=_names_image(path.parent))
        if "path" not in by_role:
            raise missing_column_error(columns, path, "path")
        finder = _FileFinder(path, self.line)
        names, sizes, times = finder.statuses(columns[by_role["path"]], lines)
        self._refuse_duplicates(names, lines)
        super().__init__(path.parent, names, sizes, times)
        self.labels, self.splits, self.groups = (
            columns[by_role[role]] if role in by_role else None
            for role in ("label", "split", "group")
        )
        if self.labels is not None:
            self.labels = normalize_label_column(self.labels)
        self.notes = (*notes, *guessed_column_notes(by_role, path, label))

    def _refuse_duplicates(self, names: Sequence[str], lines: Sequence[int]) -> None:
        if len(set(names)) == len(names):
            return
        first: dict[str, int] = {}
        for name, line in zip(names, lines, strict=True):
            if first.setdefault(name, line) != line:
                raise DataError(
                    f"{self.where} lists {name} twice, on {self.line}s {first[name]} and {line}.",
                    f"Remove one of the two {self.line}s. Several labels of an image go into one "
                    f"{self.line}, as in `cat;dog`.",
                )


def _names_image(folder: Path) -> Callable[[str], bool]:
    """A test whether a text is the path of a file relative to `folder`."""

    def exists(text: str) -> bool:
        return any("\0" not in form and (folder / form).is_file() for form in path_variants(text))

    return exists


class _FileFinder:
    """Finds the files that a table lists."""

    def __init__(self, path: Path, line: str) -> None:
        self.path, self.line = path, line

    def statuses(
        self, names: Sequence[str], lines: Sequence[int]
    ) -> "tuple[list[str], array[int], array[int]]":
        """Paths, sizes and modification times of the listed files."""
        paths, sizes, times = [], array("q"), array("q")
        # relative to an open folder: faster than resolving a million long paths
        with _stat_in(self.path.parent) as stat_file:
            for name, line in zip(names, lines, strict=True):
                file_path, status = self._find(stat_file, name, line)
                if not stat.S_ISREG(status.st_mode):
                    raise DataError(
                        f"{self.path}, {self.line} {line}: {name!r} is not a regular file.",
                        f"List one image per {self.line}.",
                    )
                paths.append(file_path)
                sizes.append(status.st_size)
                times.append(status.st_mtime_ns)
        return paths, sizes, times

    def _find(
        self, stat_file: Callable[[str], os.stat_result], name: str, line: int
    ) -> tuple[str, os.stat_result]:
        for form in path_variants(name):
            try:
                return as_text(form), stat_file(form)
            except (OSError, ValueError):
                continue
        position = self._lookup(name)
        if position is None:
            raise DataError(
                f"{self.path}, {self.line} {line}: the file {name!r} does not exist.",
                "Give paths relative to the folder of the table; if the images are elsewhere, give "
                f"their folder as DATA and --labels {self.path}.",
            )
        if position == AMBIGUOUS:
            raise DataError(
                f"{self.path}, {self.line} {line}: {name!r} matches several files.",
                "Give its path relative to the folder of the table.",
            )
        match = self._lookup.names[position]
        return match, stat_file(as_name(match))

    @functools.cached_property
    def _lookup(self) -> ImageLookup:
        folder = self.path.parent.resolve()
        if folder in (Path.home().resolve(), Path(folder.anchor)):
            return ImageLookup([])  # not searched: this could be the whole disk
        try:
            names = FolderSource(folder).names
        except DataError:
            return ImageLookup([])  # not readable: the error names the missing file
        return ImageLookup([name for name in names if has_image_suffix(name)])


@contextmanager
def _stat_in(folder: Path) -> Iterator[Callable[[str], os.stat_result]]:
    """A function that returns the `os.stat` of a file by its path relative to `folder`."""
    if os.stat not in os.supports_dir_fd:
        yield lambda name: os.stat(folder / name)  # noqa: PTH116
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield partial(os.stat, dir_fd=descriptor)
    finally:
        os.close(descriptor)


class CsvSource(FileTableSource):
    """The files listed in a CSV, in order; paths are relative to the folder of the CSV."""

    kind = "csv"

    def __init__(self, path: Path) -> None:
        self._csv = path
        table = read_delimited(path, exists=self._exists)
        super().__init__(path, table.columns, table.lines, table.notes)

    def column(self, name: str) -> list[str] | None:
        """A column of the CSV, read again."""
        columns = read_delimited(self._csv, exists=self._exists).columns
        match = find_column(columns, name)
        return None if match is None else columns[match]

    def _exists(self, name: str) -> bool:
        return bool(name) and os.path.lexists(self._csv.parent / as_name(name))
