"""Hugging Face datasets saved with `save_to_disk`: Arrow files, read in place."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.index.split_names import split_name
from unfreeze.data.sources import tables
from unfreeze.data.sources.byte_ranges import ByteRangeSource
from unfreeze.data.sources.parquet import named
from unfreeze.data.sources.paths import refuse_path_traversal
from unfreeze.errors import DataError

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def is_arrow_dataset(folder: Path) -> bool:
    """Whether the folder was written by `save_to_disk`."""
    return any((folder / name).is_file() for name in (_STATE, _SPLITS))


class ArrowDatasetSource(ByteRangeSource):
    """The rows of all splits in order; images are byte ranges of the Arrow files.

    Splits other than train, val and test are ignored, with a note.
    """

    kind = "saved"

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        folders, self.notes = _split_folders(folder)
        self._paths = [path for _, split_folder in folders for path in _files(split_folder)]
        splits = [split for split, split_folder in folders for _ in _files(split_folder)]
        names, slices, parts = list[str](), list[tuple[int, int, int]](), list[tables.TablePart]()
        for number, (path, split) in enumerate(zip(self._paths, splits, strict=True)):
            mapped = _open(path)
            image_names, ranges = mapped.images()
            slices += [(number, offset, size) for offset, size in ranges.tolist()]
            prefix = path.relative_to(folder).with_suffix("").as_posix()
            names += [f"{prefix}/{name}" for name in named(image_names)]
            schema = mapped.table.schema
            columns = tables.columns_as_text(mapped.table, tables.find_arrow_columns(schema), path)
            parts.append(tables.TablePart(len(image_names), split, columns))
        self.labels = tables.concat_role(parts, "label")
        self.splits = tables.concat_role(parts, "split")
        self.groups = tables.concat_role(parts, "group")
        self._hold(self._paths, names, slices)

    def column(self, name: str) -> list[str] | None:
        """A column as text, read again from the files."""
        values = list[str]()
        for path in self._paths:
            table = _open(path).table
            if name not in tables.text_columns(table.schema):
                return None
            values += tables.columns_as_text(table, {name: name}, path)[name]
        return values


def _split_folders(folder: Path) -> tuple[list[tuple[str, Path]], tuple[str, ...]]:
    """((split, folder) of each split, note about splits that are ignored)."""
    if not (folder / _SPLITS).is_file():
        return [("", folder)], ()
    splits = [str(name) for name in _json(folder / _SPLITS).get("splits", [])]
    ignored = [name for name in splits if (split := split_name(name)) is None or not split.pure]
    note = f"Splits other than train, val and test are ignored: {', '.join(ignored)}."
    used = [(name, folder / name) for name in splits if name not in ignored]
    return used, (note,) if ignored else ()


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Save the dataset again.") from error
    return data if isinstance(data, dict) else {}


def _files(folder: Path) -> list[Path]:
    """The Arrow files of a split, in the order of its state file."""
    listed = _json(folder / _STATE).get("_data_files") or []
    names = [str(entry.get("filename")) for entry in listed if isinstance(entry, dict)]
    for name in names:
        refuse_path_traversal(name, str(folder / _STATE))
        if not (folder / name).is_file():
            raise DataError(
                f"{folder / _STATE} lists {name}, which does not exist.",
                "Save the dataset again, or copy the complete folder.",
            )
    return [folder / name for name in names]


class _Mapped(NamedTuple):
    """A table over a memory map of its file; `start`: address of the map, `size`: its bytes."""

    path: Path
    table: Any
    start: int
    size: int

    def images(self) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Name of each row ("" if missing), and (offset, size) of its bytes: [rows, 2]."""
        column = tables.image_column(self.table.schema)
        if column is None:
            raise DataError(
                f"{self.path} contains no encoded images; its columns are "
                f"{', '.join(self.table.schema.names)}.",
                "Cast the image column to datasets.Image() before saving.",
            )
        names, ranges = list[str](), [np.zeros((0, 2), np.int64)]
        for chunk in self.table[column].chunks:
            nested = tables.is_struct(chunk.type)
            has_paths = nested and chunk.type.get_field_index("path") >= 0
            names += (
                [str(name or "") for name in chunk.field("path").to_pylist()]
                if has_paths
                else ([""] * len(chunk))
            )
            ranges.append(self._ranges(chunk.field("bytes") if nested else chunk))
        return names, np.concatenate(ranges)

    def _ranges(self, chunk: Any) -> npt.NDArray[np.int64]:
        _, offsets, data = chunk.buffers()
        dtype = np.int64 if str(chunk.type).startswith("large") else np.int32
        ends = np.frombuffer(offsets, dtype)[chunk.offset : chunk.offset + len(chunk) + 1]
        first = data.address - self.start if data is not None else 0
        if first < 0 or first + int(ends[-1]) > self.size:
            raise DataError(
                f"{self.path} is compressed and cannot be read in place.",
                "Save the dataset without compression.",
            )
        return np.stack([first + ends[:-1], np.diff(ends)], axis=1).astype(np.int64)


def _open(path: Path) -> _Mapped:
    """The table over a memory map of an Arrow stream or file."""
    arrow = tables.import_pyarrow()
    try:
        file = arrow.memory_map(str(path))
        start, size = file.read_buffer().address, file.size()
        file.seek(0)
        # Arrow files start with ARROW1, streams do not
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = arrow.ipc.open_file(file) if is_file else arrow.ipc.open_stream(file)
        return _Mapped(path, reader.read_all(), start, size)
    except (arrow.ArrowException, OSError) as error:
        raise tables.table_error(path, error) from error
