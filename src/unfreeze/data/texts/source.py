"""Labelled texts: a table with a column of texts, or a folder of .txt files by class."""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.images.signatures import has_image_suffix
from unfreeze.data.index.folder_layout import SPLIT_NAMES, read_layout
from unfreeze.data.index.split_names import splits_of_file_names
from unfreeze.data.sources.columns import (
    LABELS,
    PATHS,
    TEXTS,
    find_column,
    find_columns,
    normalize_column_name,
    normalize_label_column,
)
from unfreeze.data.sources.delimited import SUFFIXES, read_delimited
from unfreeze.data.sources.folder import FolderSource
from unfreeze.data.sources.parquet import read_columns
from unfreeze.data.sources.source import Source, hash_names
from unfreeze.errors import DataError
from unfreeze.text import as_text, decode_text

PAIRS = ("textpair", "sentence2", "text2", "hypothesis")
UNSURE = ("id", "name")  # columns that name images in some tables
FEW = 100  # rows to tell images from texts
JSON_LINES = (".jsonl", ".ndjson")
TABLES = (*SUFFIXES, *JSON_LINES, ".parquet")
TEXT_FILE = ".txt"

Tokens = npt.NDArray[np.int32]
Encode = Callable[[str, str | None], Tokens]


@dataclass(frozen=True)
class TextColumns:
    """Names of the columns; None: the usual ones."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    given: bool = True  # an error if a table lacks one of them


class TextSource(Source):
    """Texts in a fixed order; a row is a text, or a pair of texts.

    `names`: `table.csv:ROW`, counted from 1 without the header, or the path of a file. `pairs`:
    the second text of each row, if there are pairs. `encode` maps a text to tokens int32 [L, 2];
    it is set once the network is known.
    """

    kind = "texts"
    noun = "text"
    listed = True

    def __init__(self, where: str, tables: Sequence["TextsOfFile"]) -> None:
        self.where = where
        self.names = [name for table in tables for name in table.names]
        self.texts = [text for table in tables for text in table.texts]
        self.pairs = _joined([table.pairs for table in tables], tables)
        self.labels = _joined([table.labels for table in tables], tables)
        self.splits = _joined([table.splits for table in tables], tables)
        self.groups = _joined([table.groups for table in tables], tables)
        self.notes = tuple(note for table in tables for note in table.notes)
        self.columns = [table.columns for table in tables]
        self.encode: Encode | None = None
        self.sizes = np.array([len(self._key(row)) for row in range(len(self.names))], np.int64)

    def read(self, row: int) -> bytes:
        """The text in UTF-8; of a pair both, with a line break between them."""
        pair = self.pairs[row] if self.pairs else ""
        return f"{self.texts[row]}\n{pair}".rstrip("\n").encode("utf-8", "surrogatepass")

    def head(self, row: int, count: int) -> bytes:
        """The start of the normalised text: texts that differ in case and spaces only are equal."""
        return self._key(row)[:count]

    def _key(self, row: int) -> bytes:
        pair = self.pairs[row] if self.pairs else None
        return normalized(self.texts[row], pair).encode("utf-8", "surrogatepass")

    def fingerprint(self) -> str:
        """Hex digest of names, texts and pairs."""
        digest = hashlib.sha256(hash_names(self.names).encode())
        for row in range(len(self)):
            digest.update(self.read(row) + b"\0")
        return digest.hexdigest()

    def column(self, name: str) -> list[str] | None:
        """A column of the table; None if a table has none of that name."""
        columns = [(table, find_column(table, name)) for table in self.columns]
        if any(match is None for _, match in columns):
            return None
        return [value for table, match in columns for value in table[str(match)]]

    def sample(self, row: int) -> Any:
        """Tokens int32 [L, 2] of a text: ids, and which text of a pair each is of."""
        if self.encode is None:
            raise RuntimeError("the texts have no tokenizer yet")
        return self.encode(self.texts[row], self.pairs[row] if self.pairs else None)


def normalized(text: str, pair: str | None = None) -> str:
    """A text without case, accents' forms, punctuation at the ends and repeated spaces."""
    parts = [text] if pair is None else [text, pair]
    plain = (unicodedata.normalize("NFKC", part).casefold() for part in parts)
    return "\n".join(re.sub(r"[\W_]+", " ", part).strip() or part.strip() for part in plain)


@dataclass(frozen=True)
class TextsOfFile:
    """The texts of one file or folder, one entry each; None: the table has no such column."""

    names: list[str]
    texts: list[str]
    pairs: list[str] | None = None
    labels: list[str] | None = None
    splits: list[str] | None = None
    groups: list[str] | None = None
    columns: Mapping[str, list[str]] = field(default_factory=dict)  # all, by name
    notes: tuple[str, ...] = ()


def _joined(columns: Sequence[Any], tables: Sequence[TextsOfFile]) -> Any:
    """One column of all tables; "" where a table has none; None if no table has it."""
    if all(column is None for column in columns):
        return None
    return [
        value
        for column, table in zip(columns, tables, strict=True)
        for value in (column or [""] * len(table.names))
    ]


def holds_texts(data: str | Sequence[str]) -> bool:
    """Whether DATA is texts: a table with a usual column of texts and no images, or .txt files."""
    names = [data] if isinstance(data, str) else list(data)
    return bool(names) and all(_holds_texts(Path(name)) for name in names)


def _holds_texts(path: Path) -> bool:
    name = path.name.lower()
    if path.is_dir():
        files = _folder_files(path)
        return bool(files) and all(not has_image_suffix(file) for file in files)
    if not path.is_file():
        return False
    if name.endswith(JSON_LINES):
        return True
    if not name.endswith(TABLES):
        return False
    try:
        columns = _columns_of(path)[0]
    except DataError:
        return False  # opened as a table of images, which says what is wrong
    by_name = {normalize_column_name(column): values for column, values in columns.items()}
    # an id or a name may be that of a text
    images = by_name.keys() & {*PATHS} - {*UNSURE}
    named = any(has_image_suffix(v) for name in UNSURE for v in by_name.get(name, ())[:FEW])
    return bool(by_name.keys() & {*TEXTS}) and not images and not named


def _folder_files(folder: Path) -> list[str]:
    """Files of a folder that are texts or tables of texts; [] with images among them."""
    names = [path.name for path in folder.iterdir() if path.is_file()]
    if any(has_image_suffix(name) for name in names):
        return []
    tables = [name for name in names if name.lower().endswith(TABLES)]
    tables = [name for name in tables if _holds_texts(folder / name)]
    if tables:
        return tables
    # notes beside images are no data; a folder of a million images is not listed twice
    if any(has_image_suffix(name) for _, _, files in os.walk(folder) for name in files):
        return []
    found = [name for name in FolderSource(folder).names if name.lower().endswith(TEXT_FILE)]
    return found if any("/" in name for name in found) else []


def open_texts(data: str | Sequence[str], columns: TextColumns = TextColumns()) -> TextSource:
    """The texts of one or more tables or folders; DataError if there are none."""
    names = [data] if isinstance(data, str) else list(data)
    tables = [table for name in names for table in _open(Path(name), columns, several=len(names))]
    if not any(table.names for table in tables):
        raise DataError(
            f"{', '.join(names)} holds no texts.",
            "Give a CSV, TSV, JSONL or Parquet file with the columns text and label, or a folder "
            "of .txt files by class.",
        )
    return TextSource(", ".join(names), tables)


def _open(path: Path, columns: TextColumns, *, several: int) -> list[TextsOfFile]:
    if not path.exists():
        raise DataError(f"There is no folder or file '{path}'.", "Check the path.")
    if path.is_file() and path.name.lower().endswith(TEXT_FILE):
        text, old = _decoded(path.read_bytes())
        return [TextsOfFile(names=[path.name], texts=[text], notes=_old_notes(int(old)))]
    if path.is_file() and not path.name.lower().endswith(TABLES):
        raise DataError(
            f"{path} is no table and no .txt file.", f"Give one of: {', '.join(TABLES)}."
        )
    if path.is_file():
        return [_table(path, columns, prefix=f"{path.name}:", split="")]
    found = sorted(
        file for file in path.iterdir() if file.is_file() and file.name.lower().endswith(TABLES)
    )
    if not found:
        return [_text_files(path)]
    split_of = splits_of_file_names([file.name for file in found], str(path))
    return [
        _table(
            file,
            columns,
            prefix=f"{file.name}:",
            split=split_of[number],
        )
        for number, file in enumerate(found)
    ]


def _columns_of(path: Path) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """(columns by name, notes) of a table."""
    name = path.name.lower()
    if name.endswith(JSON_LINES):
        return _json_lines(path), ()
    if name.endswith(".parquet"):
        return read_columns(path, strip=False), ()
    table = read_delimited(path, strip=False)
    return table.columns, table.notes


def _json_lines(path: Path) -> dict[str, list[str]]:
    rows: list[dict[str, Any]] = []
    try:
        text = decode_text(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Save it in UTF-8.") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: invalid JSON: {error.msg}.",
                "Write one JSON object per line.",
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number} is no JSON object.", "Write one JSON object per line."
            )
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [_plain(row.get(name)) for row in rows] for name in names}


def _plain(value: Any) -> str:
    """A value of JSON as text; null is ""."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ";".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value)


def _table(path: Path, wanted: TextColumns, *, prefix: str, split: str) -> TextsOfFile:
    columns, notes = _columns_of(path)
    text = _named(columns, wanted.text, "--text-column", path, wanted) or _usual(columns, TEXTS)
    if text is None:
        raise DataError(
            f"{path} has no column `text`; its columns are {', '.join(columns) or 'none'}.",
            "Name the column of texts with --text-column.",
        )
    rest = {name: values for name, values in columns.items() if name != text}
    pair = _named(rest, wanted.pair, "--text-pair-column", path, wanted) or _usual(rest, PAIRS)
    rest = {name: [*map(str.strip, v)] for name, v in rest.items() if name != pair}
    by_role = find_columns(rest, path, label=wanted.label, names_image=lambda text: False)
    by_role = {role: name for role, name in by_role.items() if role != "path"}
    if "label" not in by_role and (usual := _usual(rest, LABELS)) is not None:
        by_role["label"] = usual
    label = by_role.get("label")
    count = len(columns[text])
    splits = rest[by_role["split"]] if "split" in by_role else [split] * count if split else None
    if normalize_column_name(text) not in TEXTS:
        notes = (*notes, f"Texts are read from the column {text!r} of {path}.")
    if label is not None and normalize_column_name(label) not in LABELS and not wanted.label:
        notes = (*notes, f"Labels are read from the column {label!r} of {path}.")
    return TextsOfFile(
        names=[f"{prefix}{number}" for number in range(1, count + 1)],
        texts=columns[text],
        pairs=None if pair is None else columns[pair],
        labels=None if label is None else normalize_label_column(rest[label]),
        splits=splits,
        groups=rest[by_role["group"]] if "group" in by_role else None,
        columns=columns,
        notes=notes,
    )


def _named(
    columns: Mapping[str, list[str]],
    name: str | None,
    flag: str,
    path: Path,
    wanted: TextColumns,
) -> str | None:
    """The column of this name; None if no name is given."""
    match = None if name is None else find_column(columns, name)
    if match is None and (name is None or not wanted.given):
        return None
    if match is None:
        raise DataError(
            f"{path} has no column {name!r}; its columns are {', '.join(columns) or 'none'}.",
            f"Give {flag} one of these.",
        )
    return match


def _usual(columns: Mapping[str, list[str]], usual: Sequence[str]) -> str | None:
    """The first column with a usual name."""
    by_name = {normalize_column_name(name): name for name in columns}
    return next((by_name[name] for name in usual if name in by_name), None)


def _text_files(folder: Path) -> TextsOfFile:
    """The .txt files below a folder, with labels and splits of its folders."""
    source = FolderSource(folder)
    rows = [row for row, name in enumerate(source.names) if name.lower().endswith(TEXT_FILE)]
    rows.sort(key=source.names.__getitem__)
    names = [source.names[row] for row in rows]
    folders = [name.rpartition("/")[0] for name in names]
    layout = read_layout(Counter(folders))
    inside = [number for number, place in enumerate(folders) if layout.places[place] is not None]
    places = [layout.places[folders[number]] for number in inside]
    notes = layout.notes
    if len(inside) < len(names):
        notes += (f"{len(names) - len(inside):,} .txt files outside the class folders: ignored.",)
    read = [_text_of(source, rows[number], names[number]) for number in inside]
    texts = [text for text, _ in read]
    notes += _old_notes(sum(old for _, old in read))
    return TextsOfFile(
        names=[names[number] for number in inside],
        texts=texts,
        labels=[(place.label if place else None) or "" for place in places],
        splits=[SPLIT_NAMES[place.split] if place else "" for place in places],
        notes=notes,
    )


def _text_of(source: FolderSource, row: int, name: str) -> tuple[str, bool]:
    """The contents of a .txt file, as `_decoded`."""
    try:
        data = source.read(row)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}.") from error
    return _decoded(data)


def _decoded(data: bytes) -> tuple[str, bool]:
    """(text, whether it is not UTF-8 and was read as Windows-1252)."""
    try:
        return decode_text(data), False
    except UnicodeDecodeError:
        return as_text(data.decode("cp1252", "replace")), True


def _old_notes(count: int) -> tuple[str, ...]:
    return (f"{count:,} .txt files are not UTF-8: read as Windows-1252.",) if count else ()
