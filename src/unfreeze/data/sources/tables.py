"""Arrow's tables as text: classes, splits and groups, and which column holds images.

What Hugging Face `datasets` writes beside a table (the names of its classes) is understood.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from unfreeze.data.multilabel import SEPARATORS
from unfreeze.data.sources.roles import GROUPS, LABELS, SPLITS, plain
from unfreeze.errors import DataError, UsageError

SEVERAL = SEPARATORS[0]  # between the labels of one image
_IMAGES = ("image", "img", "picture", "jpg", "png", "bytes")
_ROLES = {"label": LABELS, "split": SPLITS, "group": GROUPS}


class Part(NamedTuple):
    """What one file of a table says of its rows; `split` is what its name says ("": nothing)."""

    rows: int
    split: str
    columns: dict[str, list[str]]


def said(parts: Sequence[Part], role: str) -> list[str] | None:
    """`label`, `split` or `group` of every row of all parts; None where no part says it."""
    if not any(role in part.columns or (role == "split" and part.split) for part in parts):
        return None
    found = list[str]()
    for part in parts:
        otherwise = part.split if role == "split" else ""
        found += part.columns.get(role, [otherwise] * part.rows)
    return found


def pyarrow() -> Any:
    """The library with its parts; UsageError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "Parquet files and saved Hugging Face data sets are read with pyarrow, which is not "
            "installed.",
            "pip install 'unfreeze[parquet]'",
        ) from error
    return pyarrow


def damaged(path: Path, error: Exception) -> DataError:
    """What to say of a file that pyarrow cannot read."""
    said = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path} cannot be read as a table: {said}.", "Fetch or write it again.")


def class_names(schema: Any) -> dict[str, list[str]]:
    """Column -> the names of its classes, as `datasets` notes them in the schema."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        features = {name: one for name, one in told.items() if isinstance(one, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    found = {}
    for name, feature in features.items():
        inner = feature.get("feature")
        names = feature.get("names") or (inner.get("names") if isinstance(inner, dict) else None)
        if isinstance(names, list):
            found[name] = [str(one) for one in names]
    return found


def image_column(schema: Any) -> str | None:
    """The column that holds encoded images; None where there is none.

    A structure of `bytes` and `path`, as `datasets` writes it, or bytes; where there are several,
    the first by its usual names. Beside a column `path` bytes of another name are no images.
    """
    found = [field.name for field in schema if is_struct(field.type) and _inside(field.type)]
    usual = _IMAGES if "path" in schema.names else schema.names
    found += [field.name for field in schema if _is_bytes(field.type) and field.name in usual]
    return next((name for name in _IMAGES if name in found), found[0] if found else None)


def _inside(kind: Any) -> bool:
    place = kind.get_field_index("bytes")
    return place >= 0 and _is_bytes(kind.field(place).type)


def _is_bytes(kind: Any) -> bool:
    types = pyarrow().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def is_struct(kind: Any) -> bool:
    """Whether a type has named parts."""
    return bool(pyarrow().types.is_struct(kind))


def roles(schema: Any) -> dict[str, str]:
    """`label`, `split` and `group` -> the column that says it.

    Without a column of a usual name the only column of classes says the labels.
    """
    found = {}
    known = {plain(name): name for name in reversed(schema.names)}
    for role, names in _ROLES.items():
        column = next((known[name] for name in names if name in known), None)
        if column is not None and _is_text(schema.field(column).type):
            found[role] = column
    classes = class_names(schema)
    if "label" not in found and len(classes) == 1:
        found["label"] = next(iter(classes))
    return found


def text_columns(schema: Any) -> list[str]:
    """The columns that can be written as text."""
    return [field.name for field in schema if _is_text(field.type)]


def _is_text(kind: Any) -> bool:
    types = pyarrow().types
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_text(kind.value_type)
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    plain = (types.is_string, types.is_large_string, types.is_integer, types.is_floating)
    return any(is_one(kind) for is_one in (*plain, types.is_boolean))


def texts(column: Any, names: Sequence[str] | None) -> list[str]:
    """A text for each value of a column; `names` are those of its classes.

    Nothing is "", several values are joined by `;`. IndexError for a class without a name.
    """
    return [intern(_text(value, names)) for value in column.to_pylist()]


def _text(value: Any, names: Sequence[str] | None) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return SEVERAL.join(_text(one, names) for one in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas makes whole numbers with a gap among them float
    if isinstance(value, float) and value != value:
        return ""
    if names is not None and isinstance(value, int):
        return "" if value < 0 else names[value]
    return str(value).strip()


def columns_of(table: Any, wanted: Mapping[str, str], where: Path) -> dict[str, list[str]]:
    """The wanted columns as text, by the name that they are wanted under."""
    names = class_names(table.schema)
    try:
        return {key: texts(table[column], names.get(column)) for key, column in wanted.items()}
    except IndexError as error:
        raise DataError(
            f"{where} has a label beyond the classes that it names.", "Write the data set again."
        ) from error
