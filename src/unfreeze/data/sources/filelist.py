"""A table that lists images lying beside it: paths, maybe with labels, splits and groups."""

import functools
import os
import stat
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from unfreeze.data.signatures import named_as_image
from unfreeze.data.sources.folder import FileSource, FolderSource
from unfreeze.data.sources.lookup import SEVERAL, Lookup, forms
from unfreeze.data.sources.roles import guessed, lacking, plain_labels, roles
from unfreeze.errors import DataError
from unfreeze.text import as_name, as_text


class FileListSource(FileSource):
    """The files that a table names, in its order; paths are relative to the table's own folder.

    A path that is no file as it stands is looked up among the files beside the list, as `--labels`
    looks images up: ids without an ending, backslashes, folders of another machine. A missing
    file, no column of paths and a file listed twice are DataErrors that name the place: `lines`
    holds the number of each entry, and `line` is what that counts.
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
        found = roles(columns, path, label=label, names_image=_names_image(path.parent))
        if "path" not in found:
            raise lacking(columns, path, "path")
        beside = _Beside(path, self.line)
        names, sizes, times = beside.statuses(columns[found["path"]], lines)
        self._refuse_twice(names, lines)
        super().__init__(path.parent, names, sizes, times)
        self.labels, self.splits, self.groups = (
            columns[found[role]] if role in found else None for role in ("label", "split", "group")
        )
        if self.labels is not None:
            self.labels = plain_labels(self.labels)
        self.notes = (*notes, *guessed(found, path, label))

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


def _names_image(folder: Path) -> Callable[[str], bool]:
    """Whether a text is the path of a file, as it stands or with slashes."""

    def exists(text: str) -> bool:
        return any("\0" not in form and (folder / form).is_file() for form in forms(text))

    return exists


class _Beside:
    """The files beside a list."""

    def __init__(self, path: Path, line: str) -> None:
        self.path, self.line = path, line

    def statuses(
        self, names: Sequence[str], lines: Sequence[int]
    ) -> "tuple[list[str], array[int], array[int]]":
        """Paths, sizes and times of change of the files that are named."""
        paths, sizes, times = [], array("q"), array("q")
        # from a folder that is open already: a million long paths are not followed from the root
        with _opened(self.path.parent) as ask:
            for name, line in zip(names, lines, strict=True):
                where, status = self._found(ask, name, line)
                if not stat.S_ISREG(status.st_mode):
                    raise DataError(
                        f"{self.path}, {self.line} {line}: {name!r} is no file.",
                        f"Name one image a {self.line}.",
                    )
                paths.append(where)
                sizes.append(status.st_size)
                times.append(status.st_mtime_ns)
        return paths, sizes, times

    def _found(
        self, ask: Callable[[str], os.stat_result], name: str, line: int
    ) -> tuple[str, os.stat_result]:
        for form in forms(name):
            try:
                return as_text(form), ask(form)
            except (OSError, ValueError):
                continue
        place = self._lookup(name)
        if place is None:
            raise DataError(
                f"{self.path}, {self.line} {line}: there is no file {name!r} beside the list.",
                "Paths are relative to the folder of the list; for images elsewhere name their "
                f"folder as DATA, with --labels {self.path}.",
            )
        if place == SEVERAL:
            raise DataError(
                f"{self.path}, {self.line} {line}: {name!r} may be any of several files.",
                "Write its path from the folder of the list.",
            )
        found = self._lookup.names[place]
        return found, ask(as_name(found))

    @functools.cached_property
    def _lookup(self) -> Lookup:
        folder = self.path.parent.resolve()
        if folder in (Path.home().resolve(), Path(folder.anchor)):
            return Lookup([])  # everything there is: nobody's folder of images
        try:
            inside = FolderSource(folder).names
        except DataError:
            return Lookup([])  # a folder without permissions: the file that lacks is named
        return Lookup([name for name in inside if named_as_image(name)])


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
