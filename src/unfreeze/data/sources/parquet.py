"""Parquet: a list of images that lie beside it, or images inside, in one file or several."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.sources import tables
from unfreeze.data.sources.filelist import FileListSource
from unfreeze.data.sources.positional import PositionalFile
from unfreeze.data.sources.roles import two_columns
from unfreeze.data.sources.slices import SliceSource, splits_of
from unfreeze.data.sources.source import Source
from unfreeze.errors import DataError, ResourceError

_BATCH = 16  # images that are unpacked at once
_BUFFER = 2**20  # bytes that are read at once


class ParquetListSource(FileListSource):
    """The files that a Parquet list names, in its order, as a CSV would."""

    kind = "parquet"
    line = "row"

    def __init__(self, path: Path) -> None:
        self._table = path
        columns = read_columns(path)
        count = max(map(len, columns.values()), default=0)
        label = tables.roles(_schema(path)).get("label")
        super().__init__(path, columns, range(1, count + 1), label=label)

    def column(self, name: str) -> list[str] | None:
        """Any column of the table, read again from it."""
        return _column([self._table], name)


def read_columns(path: Path) -> dict[str, list[str]]:
    """Every column of text by its name; DataError where two have one name."""
    names = tables.text_columns(_schema(path))
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise two_columns(path, twice, twice)
    return _read(path, {name: name for name in names})


class ParquetSource(SliceSource):
    """Images inside Parquet files, unpacked once, as a stream, to an unnamed file.

    Parquet packs many rows together, so that one image alone cannot be read in place. Names are
    those that the table has, where each has its own, else numbers.
    """

    kind = "parquet"

    def __init__(self, where: str, root: Path, paths: Sequence[Path]) -> None:
        self.where, self._root, self._paths = where, root, list(paths)
        inner = [path.relative_to(root).as_posix() for path in paths]
        said = splits_of(inner, where) if len(paths) > 1 else [""]
        parts = [_part(path, split) for path, split in zip(paths, said, strict=True)]
        with tempfile.TemporaryFile() as heap:
            slices, names = _unpacked(heap, paths, inner)
            file = PositionalFile.of_descriptor(os.dup(heap.fileno()))
        self._hold([file], names, slices)
        self.labels = tables.said(parts, "label")
        self.splits = tables.said(parts, "split")
        self.groups = tables.said(parts, "group")
        size = int(self.sizes.sum()) / 2**20
        self.notes = (
            f"The images in {Path(where).name} are unpacked once: {size:,.1f} MiB in "
            f"{tempfile.gettempdir()} while this runs.",
        )

    def column(self, name: str) -> list[str] | None:
        """Any column of text, read again from the files."""
        return _column(self._paths, name)

    def _changed(self) -> npt.NDArray[np.int64]:
        return np.array([path.stat().st_mtime_ns for path in self._paths], np.int64)

    def __reduce__(self) -> Any:
        file = self._files[0]
        if isinstance(file, PositionalFile) and file.alias is None:
            again = (self.where, self._root, self._paths)
            return ParquetSource, again, {"intensity": self.intensity}
        return _attached, (self.__dict__,)


def open_parquet(path: Path) -> Source:
    """A single file: images inside where there are any, else a list of them."""
    if tables.image_column(_schema(path)) is None:
        return ParquetListSource(path)
    return ParquetSource(str(path), path.parent, [path])


def _attached(state: dict[str, Any]) -> ParquetSource:
    """The same source in another process, over the file that the first one unpacked."""
    source = ParquetSource.__new__(ParquetSource)
    source.__dict__.update(state)
    return source


def _schema(path: Path) -> Any:
    arrow = tables.pyarrow()
    try:
        return arrow.parquet.read_schema(path)
    except (arrow.ArrowException, OSError) as error:
        raise tables.damaged(path, error) from error


def _read(path: Path, wanted: dict[str, str]) -> dict[str, list[str]]:
    arrow = tables.pyarrow()
    try:
        table = arrow.parquet.read_table(path, columns=sorted({*wanted.values()}))
    except (arrow.ArrowException, OSError) as error:
        raise tables.damaged(path, error) from error
    return tables.columns_of(table, wanted, path)


def _column(paths: Sequence[Path], name: str) -> list[str] | None:
    if any(name not in tables.text_columns(_schema(path)) for path in paths):
        return None
    return [text for path in paths for text in _read(path, {name: name})[name]]


def _part(path: Path, split: str) -> tables.Part:
    schema = _schema(path)
    rows = tables.pyarrow().parquet.read_metadata(path).num_rows
    return tables.Part(rows, split, _read(path, tables.roles(schema)))


def _of_images(path: Path) -> str:
    schema = _schema(path)
    column = tables.image_column(schema)
    if column is None:
        raise DataError(
            f"{path} holds no images; its columns are {', '.join(schema.names)}.",
            "Take it out of the folder, or name a file with a column of bytes or of paths.",
        )
    return column


def _unpacked(
    heap: IO[bytes], paths: Sequence[Path], inner: Sequence[str]
) -> tuple[list[tuple[int, int, int]], list[str]]:
    """Writes every image to `heap`: (its place there, its name), row by row."""
    slices, names = list[tuple[int, int, int]](), list[str]()
    try:
        for path, own in zip(paths, inner, strict=True):
            told = list[str]()
            for data, name in _images(path, _of_images(path)):
                slices.append((0, heap.tell(), len(data)))
                told.append(name)
                heap.write(data)
            before = f"{own.removesuffix('.parquet')}/" if len(paths) > 1 else ""
            names += [before + name for name in named(told)]
        heap.flush()
    except OSError as error:
        raise ResourceError(
            f"The images could not be unpacked in {tempfile.gettempdir()}: {error}.",
            "Free some space there, or point TMPDIR at a larger disk.",
        ) from error
    return slices, names


def _images(path: Path, column: str) -> Iterator[tuple[bytes, str]]:
    """Bytes (none where the row has none) and the name that the table gives, row by row."""
    arrow = tables.pyarrow()
    try:
        # read as a stream: else a whole group of rows stands in memory three times
        options: Any = {"pre_buffer": False, "buffer_size": _BUFFER}
        with arrow.parquet.ParquetFile(path, **options) as file:
            for batch in file.iter_batches(_BATCH, columns=[column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    one = value if isinstance(value, dict) else {"bytes": value}
                    yield one.get("bytes") or b"", str(one.get("path") or "")
    except arrow.ArrowException as error:
        raise tables.damaged(path, error) from error


def named(told: Sequence[str]) -> list[str]:
    """The names, where each row has its own, else the number of each row."""
    if all(told) and len({*told}) == len(told):
        return list(told)
    width = len(str(max(len(told) - 1, 0)))
    return [f"{row:0{width}}" for row in range(len(told))]
