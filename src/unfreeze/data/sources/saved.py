"""A data set of Hugging Face `datasets` as `save_to_disk` writes it: Arrow files, read in place."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.sources import tables
from unfreeze.data.sources.members import refuse_slip
from unfreeze.data.sources.parquet import named
from unfreeze.data.sources.slices import SliceSource
from unfreeze.data.split_names import split_name
from unfreeze.errors import DataError

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in (_STATE, _SPLITS))


class SavedSource(SliceSource):
    """The rows of all splits in turn; images are stretches of the Arrow files themselves.

    Splits other than train, val and test are left out, with a note.
    """

    kind = "saved"

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        inside, self.notes = _parts(folder)
        self._paths = [path for split, part in inside for path in _files(part)]
        splits = [split for split, part in inside for _ in _files(part)]
        names, slices, parts = list[str](), list[tuple[int, int, int]](), list[tables.Part]()
        for number, (path, split) in enumerate(zip(self._paths, splits, strict=True)):
            held = _open(path)
            told, places = held.images()
            slices += [(number, first, size) for first, size in places.tolist()]
            own = path.relative_to(folder).with_suffix("").as_posix()
            names += [f"{own}/{name}" for name in named(told)]
            schema = held.table.schema
            columns = tables.columns_of(held.table, tables.roles(schema), path)
            parts.append(tables.Part(len(told), split, columns))
        self.labels = tables.said(parts, "label")
        self.splits = tables.said(parts, "split")
        self.groups = tables.said(parts, "group")
        self._hold(self._paths, names, slices)

    def column(self, name: str) -> list[str] | None:
        """Any column of text, read again from the files."""
        found = list[str]()
        for path in self._paths:
            table = _open(path).table
            if name not in tables.text_columns(table.schema):
                return None
            found += tables.columns_of(table, {name: name}, path)[name]
        return found


def _parts(folder: Path) -> tuple[list[tuple[str, Path]], tuple[str, ...]]:
    """(the split and the folder of each part, a sentence about splits that are not read)."""
    if not (folder / _SPLITS).is_file():
        return [("", folder)], ()
    there = [str(name) for name in _json(folder / _SPLITS).get("splits", [])]
    strange = [name for name in there if (said := split_name(name)) is None or not said.pure]
    notes = [f"Splits other than train, val and test are not read: {', '.join(strange)}."]
    found = [(name, folder / name) for name in there if name not in strange]
    return found, tuple(notes if strange else [])


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Save the data set again.") from error
    return found if isinstance(found, dict) else {}


def _files(folder: Path) -> list[Path]:
    """The Arrow files of a part, in the order that its state says."""
    listed = _json(folder / _STATE).get("_data_files") or []
    names = [str(one.get("filename")) for one in listed if isinstance(one, dict)]
    for name in names:
        refuse_slip(name, str(folder / _STATE))
        if not (folder / name).is_file():
            raise DataError(
                f"{folder / _STATE} names {name}, which is not there.",
                "Save the data set again, or copy the whole folder.",
            )
    return [folder / name for name in names]


class _Mapped(NamedTuple):
    """A table whose images lie in a memory map of its file, from the address `start` on."""

    path: Path
    table: Any
    start: int
    size: int

    def images(self) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The name that each row has, and where in the file its bytes lie: [rows, 2]."""
        column = tables.image_column(self.table.schema)
        if column is None:
            raise DataError(
                f"{self.path} holds no encoded images; its columns are "
                f"{', '.join(self.table.schema.names)}.",
                "Cast the column of images to datasets.Image() before saving.",
            )
        told, places = list[str](), [np.zeros((0, 2), np.int64)]
        for chunk in self.table[column].chunks:
            nested = tables.is_struct(chunk.type)
            paths = nested and chunk.type.get_field_index("path") >= 0
            told += (
                [str(name or "") for name in chunk.field("path").to_pylist()]
                if paths
                else ([""] * len(chunk))
            )
            places.append(self._stretches(chunk.field("bytes") if nested else chunk))
        return told, np.concatenate(places)

    def _stretches(self, chunk: Any) -> npt.NDArray[np.int64]:
        _, offsets, data = chunk.buffers()
        kind = np.int64 if str(chunk.type).startswith("large") else np.int32
        ends = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1]
        first = data.address - self.start if data is not None else 0
        if first < 0 or first + int(ends[-1]) > self.size:
            raise DataError(
                f"{self.path} is compressed inside, and cannot be read in place.",
                "Save the data set without compression.",
            )
        return np.stack([first + ends[:-1], np.diff(ends)], axis=1).astype(np.int64)


def _open(path: Path) -> _Mapped:
    """The table over a memory map of the file, as a stream or a file of Arrow's."""
    arrow = tables.pyarrow()
    try:
        file = arrow.memory_map(str(path))
        start, size = file.read_buffer().address, file.size()
        file.seek(0)
        # files begin with their name, streams with a mark of their own
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = arrow.ipc.open_file(file) if is_file else arrow.ipc.open_stream(file)
        return _Mapped(path, reader.read_all(), start, size)
    except (arrow.ArrowException, OSError) as error:
        raise tables.damaged(path, error) from error
