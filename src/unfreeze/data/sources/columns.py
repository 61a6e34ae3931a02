"""Finds the columns of paths, labels, splits and groups in a table, by their usual names."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from unfreeze.data.images.signatures import has_image_suffix
from unfreeze.data.index.split_names import splits_of_words
from unfreeze.errors import DataError

# usual column names, without case, spaces and punctuation, in order of preference
PATHS = (
    *("path", "filepath", "filepaths", "relativepath", "imagepath", "imgpath", "file", "files"),
    *("filename", "filenames", "fname", "imagefile", "imagefilename", "imagename", "imgname"),
    *("image", "images", "img", "imageid", "imgid", "idcode", "picture", "photo", "name", "id"),
)
LABELS = (
    *("label", "labels", "classname", "class", "classes", "classlabel", "labelname", "category"),
    *("categoryname", "target", "targets", "breed", "species", "diagnosis", "dx", "classid"),
    *("classidx", "labelid", "categoryid", "sentiment", "intent", "topic"),
)
TEXTS = (
    *("text", "sentence", "review", "content", "body", "message", "sentence1", "text1", "premise"),
)
SPLITS = ("split",)
# columns of splits if all values are names of splits
MAYBE_SPLITS = ("set", "subset", "dataset", "datasplit", "partition", "usage", "phase")
GROUPS = ("group", "groups", "groupid")
# columns of metadata, never labels
_METADATA = (
    *("patient", "patientid", "subject", "subjectid", "caseid", "lesionid", "slide", "slideid"),
    *("site", "date", "time", "timestamp", "year", "width", "height", "size", "bytes", "md5"),
    *("sha256", "url", "caption", "text", "description", "comment", "notes", "author", "license"),
)
_TRIED = 50  # values per column that are tested
_ZERO = re.compile(r"(-?\d+)\.0+")
_MISSING = ("nan", "na", "null", "none", "n/a")


def normalize_column_name(name: str) -> str:
    """A column name without case, spaces and punctuation: `Image_ID` is `imageid`."""
    return re.sub(r"[\W_]+", "", name.casefold())


def find_columns(
    columns: Mapping[str, list[str]],
    where: Path | str,
    *,
    label: str | None = None,
    names_image: Callable[[str], bool] | None = None,
) -> dict[str, str]:
    """The column of each role (`path`, `label`, `split`, `group`) that the table has.

    `label`: name of the label column; if None and no column has a usual name, it is the only
    remaining column. `names_image`: whether a text is the path of an image; the first column with
    such a value has the paths. DataError if `label` does not exist, or if two columns have the same
    usual name.
    """
    by_role: dict[str, str] = {}
    path = _path(columns, where, names_image)
    if path is not None:
        by_role["path"] = path
    others = {name: column for name, column in columns.items() if name != path}
    split = _usual(others, SPLITS, where) or _split(others)
    group = _usual(others, GROUPS, where)
    by_role |= {"split": split} if split is not None else {}
    by_role |= {"group": group} if group is not None else {}
    rest = {name: column for name, column in others.items() if name not in by_role.values()}
    if label:
        label_column: str | None = _requested(columns, label, where)
    else:
        label_column = _usual(rest, LABELS, where) or _only(rest)
    return by_role | ({"label": label_column} if label_column is not None else {})


def guessed_column_notes(
    by_role: Mapping[str, str], where: Path | str, label: str | None = None
) -> tuple[str, ...]:
    """Notes about the columns of `roles` that have no usual name."""
    usual_names = {
        "path": PATHS,
        "label": (*LABELS, normalize_column_name(label or "")),
        "split": SPLITS,
    }
    nouns = {"path": "Images", "label": "Labels", "split": "Splits"}
    return tuple(
        f"{nouns[role]} are read from the column {by_role[role]!r} of {where}."
        for role, names in usual_names.items()
        if role in by_role and normalize_column_name(by_role[role]) not in names
    )


def find_column(columns: Mapping[str, list[str]], name: str) -> str | None:
    """The column of that name, else the only one that differs in case and punctuation only."""
    if name in columns:
        return name
    similar = [
        column for column in columns if normalize_column_name(column) == normalize_column_name(name)
    ]
    return similar[0] if len(similar) == 1 else None


def missing_column_error(
    columns: Mapping[str, list[str]], where: Path | str, role: str
) -> DataError:
    """The error for a table without a column for `role`."""
    existing = ", ".join(columns) or "none"
    if role == "label":
        step = "Name the column of labels `label`, or give its name with --label-column."
    elif role == "path" and _usual_text(columns):
        return DataError(
            f"{where} holds texts, not images.",
            "finetune, compare, evaluate, predict, embed and export read texts, the others do not.",
        )
    elif role == "path":
        step = "Name the column of image paths `path`."
    else:
        step = f"Add a column named `{role}`."
    return DataError(f"{where} has no column `{role}`; its columns are {existing}.", step)


def _usual_text(columns: Mapping[str, list[str]]) -> bool:
    """Whether a column has a usual name of texts."""
    return any(normalize_column_name(name) in TEXTS for name in columns)


def duplicate_column_error(where: Path | str, one: str, other: str) -> DataError:
    """The error for two columns that could have the same role."""
    names = repr(one) if one == other else f"{one!r} and {other!r}"
    return DataError(
        f"{where} has two columns named {names}.",
        "Rename or remove one of them.",
    )


def normalize_label_column(column: Sequence[str]) -> list[str]:
    """Labels as text. If all are integers `3.0` becomes `3`, and `nan` becomes "" (no label)."""
    distinct = {*column}
    if not any(map(_ZERO.fullmatch, distinct)):
        return [*column]
    table: dict[str, str] = {}
    for text in distinct:
        zero = _ZERO.fullmatch(text)
        if text and zero is None and not text.isdigit() and text.lower() not in _MISSING:
            return [*column]  # not integers
        table[text] = zero[1] if zero else "" if text.lower() in _MISSING else text
    return [table[text] for text in column]


def _requested(columns: Mapping[str, list[str]], name: str, where: Path | str) -> str:
    match = find_column(columns, name)
    if match is None:
        raise DataError(
            f"{where} has no column {name!r}; its columns are {', '.join(columns) or 'none'}.",
            "Give --label-column one of these.",
        )
    return match


def _usual(columns: Mapping[str, list[str]], usual: Sequence[str], where: Path | str) -> str | None:
    return next(iter(_all_usual(columns, usual, where)), None)


def _all_usual(
    columns: Mapping[str, list[str]], usual: Sequence[str], where: Path | str
) -> list[str]:
    """The columns with these names, in the order of the names."""
    known: dict[str, str] = {}
    for name in columns:
        key = normalize_column_name(name)
        if key in usual and key in known:
            raise duplicate_column_error(where, known[key], name)
        known[key] = name
    return [known[key] for key in usual if key in known]


def _path(
    columns: Mapping[str, list[str]],
    where: Path | str,
    names_image: Callable[[str], bool] | None,
) -> str | None:
    usual = _all_usual(columns, PATHS, where)
    if names_image is None:
        return usual[0] if usual else None
    for name in (*usual, *(name for name in columns if name not in usual)):
        values = columns[name][:_TRIED]
        if any(map(names_image, filter(None, values))):
            return name
    if usual:
        return usual[0]
    files = [
        name
        for name, column in columns.items()
        if column[:_TRIED] and all(map(has_image_suffix, column[:_TRIED]))
    ]
    return files[0] if files else None


def _split(columns: Mapping[str, list[str]]) -> str | None:
    for key in MAYBE_SPLITS:
        for name, column in columns.items():
            words = {*column}
            if (
                normalize_column_name(name) == key
                and words - {""}
                and words <= set(splits_of_words(words))
            ):
                return name
    return None


def _only(columns: Mapping[str, list[str]]) -> str | None:
    """The only column that can contain labels: with values that are repeated."""
    candidates = [
        name
        for name in columns
        if normalize_column_name(name) not in _METADATA and not _is_row_number(columns[name])
    ]
    if len(candidates) != 1:
        return None
    values = list(filter(None, columns[candidates[0]]))
    return candidates[0] if len({*values}) < len(values) else None


def _is_row_number(column: Sequence[str]) -> bool:
    """Whether a column contains the row numbers, from 0 or 1."""
    return any(
        all(text == str(number) for number, text in enumerate(column, first)) for first in (0, 1)
    )
