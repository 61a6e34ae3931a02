"""Arrow tables: columns as text, the column of images, and datasets saved by `save_to_disk`.

Class names in the schema metadata of Hugging Face `datasets` are used.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.index.labels import SEPARATORS
from unfreeze.data.index.split_names import split_name
from unfreeze.data.sources.columns import GROUPS, LABELS, SPLITS, normalize_column_name
from unfreeze.data.sources.paths import refuse_path_traversal
from unfreeze.data.sources.source import ByteRangeSource
from unfreeze.errors import DataError, UsageError

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_LABEL_SEPARATOR = SEPARATORS[0]  # separates the labels of one image
_IMAGES = ("image", "img", "picture", "jpg", "png", "bytes")
_ROLES = {"label": LABELS, "split": SPLITS, "group": GROUPS}


class TablePart(NamedTuple):
    """Labels, splits and groups of one file; `split`: the split in its name ("" if none)."""

    rows: int
    split: str
    columns: dict[str, list[str]]


def concat_role(parts: Sequence[TablePart], role: str) -> list[str] | None:
    """The `label`, `split` or `group` of all rows of all parts; None if no part has it."""
    if not any(role in part.columns or (role == "split" and part.split) for part in parts):
        return None
    values = list[str]()
    for part in parts:
        default = part.split if role == "split" else ""
        values += part.columns.get(role, [default] * part.rows)
    return values


def import_pyarrow() -> Any:
    """The pyarrow module with the submodules used; UsageError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "Parquet files and saved Hugging Face datasets need pyarrow, which is not installed.",
            "Run pip install 'unfreeze[parquet]'.",
        ) from error
    return pyarrow


def table_error(path: Path, error: Exception) -> DataError:
    """The error for a file that pyarrow cannot read."""
    message = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path} cannot be read as a table: {message}.", "Download or write it again.")


def class_names(schema: Any) -> dict[str, list[str]]:
    """Class names by column, from the schema metadata of `datasets`."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])["info"]
        features = {
            name: feature for name, feature in info["features"].items() if isinstance(feature, dict)
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    classes = {}
    for name, feature in features.items():
        inner = feature.get("feature")
        names = feature.get("names") or (inner.get("names") if isinstance(inner, dict) else None)
        if isinstance(names, list):
            classes[name] = [str(class_name) for class_name in names]
    return classes


def image_column(schema: Any) -> str | None:
    """The column of encoded images; None if there is none.

    It is a struct of `bytes` and `path`, as written by `datasets`, or binary; if there are several,
    usual names come first. If there is a column `path`, only binary columns of usual names count.
    """
    columns = [field.name for field in schema if is_struct(field.type) and _has_bytes(field.type)]
    usual = _IMAGES if "path" in schema.names else schema.names
    columns += [field.name for field in schema if _is_bytes(field.type) and field.name in usual]
    return next((name for name in _IMAGES if name in columns), columns[0] if columns else None)


def _has_bytes(struct: Any) -> bool:
    index = struct.get_field_index("bytes")
    return index >= 0 and _is_bytes(struct.field(index).type)


def _is_bytes(kind: Any) -> bool:
    types = import_pyarrow().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def is_struct(kind: Any) -> bool:
    """Whether an Arrow type is a struct."""
    return bool(import_pyarrow().types.is_struct(kind))


def find_arrow_columns(schema: Any) -> dict[str, str]:
    """The column of each role (`label`, `split`, `group`) that the table has.

    If no column of labels has a usual name, it is the only column with class names.
    """
    by_role = {}
    known = {normalize_column_name(name): name for name in reversed(schema.names)}
    for role, names in _ROLES.items():
        column = next((known[name] for name in names if name in known), None)
        if column is not None and _is_text(schema.field(column).type):
            by_role[role] = column
    classes = class_names(schema)
    if "label" not in by_role and len(classes) == 1:
        by_role["label"] = next(iter(classes))
    return by_role


def text_columns(schema: Any) -> list[str]:
    """The columns that can be converted to text."""
    return [field.name for field in schema if _is_text(field.type)]


def _is_text(kind: Any) -> bool:
    types = import_pyarrow().types
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_text(kind.value_type)
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    strings_and_numbers = (
        types.is_string,
        types.is_large_string,
        types.is_integer,
        types.is_floating,
        types.is_boolean,
    )
    return any(is_type(kind) for is_type in strings_and_numbers)


def column_as_text(column: Any, names: Sequence[str] | None, *, strip: bool = True) -> list[str]:
    """The values of a column as text; `names`: its class names, if it has class indices.

    Null becomes "", lists are joined by `;`. IndexError for an index without a class name.
    """
    texts = (_text(value, names) for value in column.to_pylist())
    return [intern(text.strip() if strip else text) for text in texts]


def _text(value: Any, names: Sequence[str] | None) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return _LABEL_SEPARATOR.join(_text(item, names) for item in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas stores integers with missing values as float
    if isinstance(value, float) and value != value:
        return ""
    if names is not None and isinstance(value, int):
        return "" if value < 0 else names[value]
    return str(value)


def columns_as_text(
    table: Any, wanted: Mapping[str, str], where: Path, *, strip: bool = True
) -> dict[str, list[str]]:
    """Columns as text: `wanted` maps the keys of the result to column names."""
    names = class_names(table.schema)
    try:
        return {
            key: column_as_text(table[column], names.get(column), strip=strip)
            for key, column in wanted.items()
        }
    except IndexError as error:
        raise DataError(
            f"{where} contains a label without a class name.", "Write the dataset again."
        ) from error


def named(names: Sequence[str]) -> list[str]:
    """The names if they are unique and complete, else row numbers."""
    if all(names) and len({*names}) == len(names):
        return list(names)
    width = len(str(max(len(names) - 1, 0)))
    return [f"{row:0{width}}" for row in range(len(names))]


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
        names, ranges, parts = list[str](), list[npt.NDArray[np.int64]](), list[TablePart]()
        for path, split in zip(self._paths, splits, strict=True):
            mapped = _open(path)
            image_names, image_ranges = mapped.images()
            ranges.append(image_ranges)
            prefix = path.relative_to(folder).with_suffix("").as_posix()
            names += [f"{prefix}/{name}" for name in named(image_names)]
            schema = mapped.table.schema
            columns = columns_as_text(mapped.table, find_arrow_columns(schema), path)
            parts.append(TablePart(len(image_names), split, columns))
        self.labels = concat_role(parts, "label")
        self.splits = concat_role(parts, "split")
        self.groups = concat_role(parts, "group")
        self._hold(names, self._paths, ranges)

    def column(self, name: str) -> list[str] | None:
        """A column as text, read again from the files."""
        values = list[str]()
        for path in self._paths:
            table = _open(path).table
            if name not in text_columns(table.schema):
                return None
            values += columns_as_text(table, {name: name}, path)[name]
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
        column = image_column(self.table.schema)
        if column is None:
            raise DataError(
                f"{self.path} contains no encoded images; its columns are "
                f"{', '.join(self.table.schema.names)}.",
                "Cast the image column to datasets.Image() before saving.",
            )
        names, ranges = list[str](), [np.zeros((0, 2), np.int64)]
        for chunk in self.table[column].chunks:
            nested = is_struct(chunk.type)
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
    arrow = import_pyarrow()
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
        raise table_error(path, error) from error
