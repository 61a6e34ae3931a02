"""Parquet files that contain images or list image files."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.index.split_names import splits_of_file_names
from unfreeze.data.sources import arrow as tables
from unfreeze.data.sources.columns import duplicate_column_error
from unfreeze.data.sources.csv import FileTableSource
from unfreeze.data.sources.source import ByteRangeSource, PositionalFile, Source
from unfreeze.errors import DataError, ResourceError

_BATCH = 16  # images read at once
_BUFFER = 2**20  # bytes read at once


class ParquetListSource(FileTableSource):
    """The files listed in a Parquet table, in order, as in a CSV."""

    kind = "parquet"
    line = "row"

    def __init__(self, path: Path) -> None:
        self._table = path
        columns = read_columns(path)
        count = max(map(len, columns.values()), default=0)
        label = tables.find_arrow_columns(_schema(path)).get("label")
        super().__init__(path, columns, range(1, count + 1), label=label)

    def column(self, name: str) -> list[str] | None:
        """A column of the table, read again."""
        return _column([self._table], name)


def read_columns(path: Path, *, strip: bool = True) -> dict[str, list[str]]:
    """All columns as text, by name; DataError if two have the same name. `strip`: strip values."""
    names = tables.text_columns(_schema(path))
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise duplicate_column_error(path, repeated, repeated)
    return _read(path, {name: name for name in names}, strip=strip)


class ParquetSource(ByteRangeSource):
    """Images in Parquet files, extracted once into an unnamed temporary file.

    Parquet compresses many rows together, so that single images cannot be read in place. Names are
    those of the table if they are unique, else row numbers.
    """

    kind = "parquet"

    def __init__(self, where: str, root: Path, paths: Sequence[Path]) -> None:
        self.where, self._root, self._paths = where, root, list(paths)
        relative = [path.relative_to(root).as_posix() for path in paths]
        splits = splits_of_file_names(relative, where) if len(paths) > 1 else [""]
        parts = [_part(path, split) for path, split in zip(paths, splits, strict=True)]
        file, sizes, names = _extract(paths, relative)
        ranges = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)
        self._hold(names, [file], [ranges])
        self.labels = tables.concat_role(parts, "label")
        self.splits = tables.concat_role(parts, "split")
        self.groups = tables.concat_role(parts, "group")
        size = int(self.sizes.sum()) / 2**20
        self.notes = (
            f"The images of {Path(where).name} ({size:,.1f} MiB) are extracted to "
            f"{tempfile.gettempdir()} for this run.",
        )

    def column(self, name: str) -> list[str] | None:
        """A column as text, read again from the files."""
        return _column(self._paths, name)

    def _originals(self) -> list[Path]:
        return self._paths

    def __reduce__(self) -> Any:
        file = self._files[0]
        if isinstance(file, PositionalFile) and file.alias is None:
            arguments = (self.where, self._root, self._paths)
            return ParquetSource, arguments, {"intensity": self.intensity}
        return _from_state, (self.__dict__,)


def open_parquet(path: Path) -> Source:
    """The source for one file, which contains images or lists them."""
    if tables.image_column(_schema(path)) is None:
        return ParquetListSource(path)
    return ParquetSource(str(path), path.parent, [path])


def _from_state(state: dict[str, Any]) -> ParquetSource:
    """The source in another process, which uses the file extracted by the first one."""
    source = ParquetSource.__new__(ParquetSource)
    source.__dict__.update(state)
    return source


def _schema(path: Path) -> Any:
    arrow = tables.import_pyarrow()
    try:
        return arrow.parquet.read_schema(path)
    except (arrow.ArrowException, OSError) as error:
        raise tables.table_error(path, error) from error


def _read(path: Path, wanted: dict[str, str], *, strip: bool = True) -> dict[str, list[str]]:
    arrow = tables.import_pyarrow()
    try:
        table = arrow.parquet.read_table(path, columns=sorted({*wanted.values()}))
    except (arrow.ArrowException, OSError) as error:
        raise tables.table_error(path, error) from error
    return tables.columns_as_text(table, wanted, path, strip=strip)


def _column(paths: Sequence[Path], name: str) -> list[str] | None:
    if any(name not in tables.text_columns(_schema(path)) for path in paths):
        return None
    return [text for path in paths for text in _read(path, {name: name})[name]]


def _part(path: Path, split: str) -> tables.TablePart:
    schema = _schema(path)
    rows = tables.import_pyarrow().parquet.read_metadata(path).num_rows
    return tables.TablePart(rows, split, _read(path, tables.find_arrow_columns(schema)))


def _image_column(path: Path) -> str:
    schema = _schema(path)
    column = tables.image_column(schema)
    if column is None:
        raise DataError(
            f"{path} contains no images; its columns are {', '.join(schema.names)}.",
            "Move it out of the folder, or give a file with a column of image bytes or paths.",
        )
    return column


def _extract(
    paths: Sequence[Path], relative: Sequence[str]
) -> tuple[PositionalFile, npt.NDArray[np.int64], list[str]]:
    """Writes all images to an unnamed file; returns it, and their sizes and names."""
    sizes, names = list[int](), list[str]()
    try:
        with tempfile.TemporaryFile() as temporary:
            for path, relative_path in zip(paths, relative, strict=True):
                row_names = list[str]()
                for data, name in _images(path, _image_column(path)):
                    sizes.append(temporary.write(data))
                    row_names.append(name)
                prefix = f"{relative_path.removesuffix('.parquet')}/" if len(paths) > 1 else ""
                names += [prefix + name for name in tables.named(row_names)]
            temporary.flush()
            file = PositionalFile.of_descriptor(os.dup(temporary.fileno()))
    except OSError as error:  # also when the file is closed
        raise ResourceError(
            f"The images cannot be extracted to {tempfile.gettempdir()}: {error}.",
            "Free disk space there, or set TMPDIR to a folder on a larger disk.",
        ) from error
    return file, np.array(sizes, np.int64), names


def _images(path: Path, column: str) -> Iterator[tuple[bytes, str]]:
    """Yields the bytes and name of each row, empty if missing."""
    arrow = tables.import_pyarrow()
    try:
        # streamed: otherwise a row group is in memory three times
        options: Any = {"pre_buffer": False, "buffer_size": _BUFFER}
        with arrow.parquet.ParquetFile(path, **options) as file:
            for batch in file.iter_batches(_BATCH, columns=[column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    image = value if isinstance(value, dict) else {"bytes": value}
                    yield image.get("bytes") or b"", str(image.get("path") or "")
    except arrow.ArrowException as error:
        raise tables.table_error(path, error) from error
