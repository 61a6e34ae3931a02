"""Arrow tables: labels, splits and groups as text, and the column of images.

Class names in the schema metadata of Hugging Face `datasets` are used.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from unfreeze.data.index.labels import SEPARATORS
from unfreeze.data.sources.columns import GROUPS, LABELS, SPLITS, normalize_column_name
from unfreeze.errors import DataError, UsageError

LABEL_SEPARATOR = SEPARATORS[0]  # separates the labels of one image
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


def column_as_text(column: Any, names: Sequence[str] | None) -> list[str]:
    """The values of a column as text; `names`: its class names, if it has class indices.

    Null becomes "", lists are joined by `;`. IndexError for an index without a class name.
    """
    return [intern(_text(value, names)) for value in column.to_pylist()]


def _text(value: Any, names: Sequence[str] | None) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return LABEL_SEPARATOR.join(_text(item, names) for item in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas stores integers with missing values as float
    if isinstance(value, float) and value != value:
        return ""
    if names is not None and isinstance(value, int):
        return "" if value < 0 else names[value]
    return str(value).strip()


def columns_as_text(table: Any, wanted: Mapping[str, str], where: Path) -> dict[str, list[str]]:
    """Columns as text: `wanted` maps the keys of the result to column names."""
    names = class_names(table.schema)
    try:
        return {
            key: column_as_text(table[column], names.get(column)) for key, column in wanted.items()
        }
    except IndexError as error:
        raise DataError(
            f"{where} contains a label without a class name.", "Write the dataset again."
        ) from error
