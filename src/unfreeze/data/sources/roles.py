"""Which column of a list says what: paths, labels, splits and groups, under any usual name."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from unfreeze.data.signatures import named_as_image
from unfreeze.data.split_names import splits_of_words
from unfreeze.errors import DataError

# what such columns are called, without case, spaces and signs; the first that is there counts
PATHS = (
    *("path", "filepath", "filepaths", "relativepath", "imagepath", "imgpath", "file", "files"),
    *("filename", "filenames", "fname", "imagefile", "imagefilename", "imagename", "imgname"),
    *("image", "images", "img", "imageid", "imgid", "idcode", "picture", "photo", "name", "id"),
)
LABELS = (
    *("label", "labels", "classname", "class", "classes", "classlabel", "labelname", "category"),
    *("categoryname", "target", "targets", "breed", "species", "diagnosis", "dx", "classid"),
    *("classidx", "labelid", "categoryid"),
)
SPLITS = ("split",)
# these say splits only where every value is a word for one
MAYBE_SPLITS = ("set", "subset", "dataset", "datasplit", "partition", "usage", "phase")
GROUPS = ("group", "groups", "groupid")
# columns that describe an image beside its label
_BESIDE = (
    *("patient", "patientid", "subject", "subjectid", "caseid", "lesionid", "slide", "slideid"),
    *("site", "date", "time", "timestamp", "year", "width", "height", "size", "bytes", "md5"),
    *("sha256", "url", "caption", "text", "description", "comment", "notes", "author", "license"),
)
_TRIED = 50  # values of a column that are looked up
_ZERO = re.compile(r"(-?\d+)\.0+")
_MISSING = ("nan", "na", "null", "none", "n/a")


def plain(name: str) -> str:
    """A column's name without case, spaces and signs: `Image_ID` is `imageid`."""
    return re.sub(r"[\W_]+", "", name.casefold())


def roles(
    columns: Mapping[str, list[str]],
    where: Path | str,
    *,
    label: str | None = None,
    names_image: Callable[[str], bool] | None = None,
) -> dict[str, str]:
    """`path`, `label`, `split` and `group` -> the column that says it, where there is one.

    `label` names the column of labels; without it and without a usual name the only other column
    is it. `names_image` tells whether a text names an image: of several columns the first counts
    that does. DataError where `label` is not there, or where two columns have one usual name.
    """
    found: dict[str, str] = {}
    path = _path(columns, where, names_image)
    if path is not None:
        found["path"] = path
    others = {name: column for name, column in columns.items() if name != path}
    split = _usual(others, SPLITS, where) or _split(others)
    group = _usual(others, GROUPS, where)
    found |= {"split": split} if split is not None else {}
    found |= {"group": group} if group is not None else {}
    rest = {name: column for name, column in others.items() if name not in found.values()}
    chosen = _asked(columns, label, where) if label else _usual(rest, LABELS, where) or _only(rest)
    return found | ({"label": chosen} if chosen is not None else {})


def guessed(
    found: Mapping[str, str], where: Path | str, label: str | None = None
) -> tuple[str, ...]:
    """Sentences about the columns of `roles` that have none of the usual names."""
    usual = {"path": PATHS, "label": (*LABELS, plain(label or "")), "split": SPLITS}
    words = {"path": "Images", "label": "Labels", "split": "Splits"}
    return tuple(
        f"{words[role]} are the column {found[role]!r} of {where}."
        for role, names in usual.items()
        if role in found and plain(found[role]) not in names
    )


def named(columns: Mapping[str, list[str]], name: str) -> str | None:
    """The column of that name, else the only one that differs from it by case and signs alone."""
    if name in columns:
        return name
    alike = [column for column in columns if plain(column) == plain(name)]
    return alike[0] if len(alike) == 1 else None


def lacking(columns: Mapping[str, list[str]], where: Path | str, role: str) -> DataError:
    """What to say of a list without a column for `role`."""
    there = ", ".join(columns) or "none"
    if role == "label":
        step = "Name the column of the labels `label`, or say which it is with --label-column."
    elif role == "path":
        step = "Name the column of the images `path`."
    else:
        step = f"Add a column named `{role}`."
    return DataError(f"{where} has no column `{role}`; it has {there}.", step)


def two_columns(where: Path | str, one: str, other: str) -> DataError:
    """What to say of two columns that may mean the same."""
    names = repr(one) if one == other else f"{one!r} and {other!r}"
    return DataError(
        f"{where} has two columns named {names}.",
        "Rename or remove one of them: nobody can tell which of them counts.",
    )


def plain_labels(column: Sequence[str]) -> list[str]:
    """Labels as text: where all are whole numbers, `3.0` is `3`, and `nan` is none."""
    distinct = {*column}
    if not any(map(_ZERO.fullmatch, distinct)):
        return [*column]
    table: dict[str, str] = {}
    for text in distinct:
        zero = _ZERO.fullmatch(text)
        if text and zero is None and not text.isdigit() and text.lower() not in _MISSING:
            return [*column]  # 1.5 among them, or names: these are no whole numbers
        table[text] = zero[1] if zero else "" if text.lower() in _MISSING else text
    return [table[text] for text in column]


def _asked(columns: Mapping[str, list[str]], name: str, where: Path | str) -> str:
    found = named(columns, name)
    if found is None:
        raise DataError(
            f"{where} has no column {name!r}; it has {', '.join(columns) or 'none'}.",
            "Give --label-column one of these.",
        )
    return found


def _usual(columns: Mapping[str, list[str]], usual: Sequence[str], where: Path | str) -> str | None:
    return next(iter(_all_usual(columns, usual, where)), None)


def _all_usual(
    columns: Mapping[str, list[str]], usual: Sequence[str], where: Path | str
) -> list[str]:
    """The columns of these names, in the order of the names."""
    known: dict[str, str] = {}
    for name in columns:
        key = plain(name)
        if key in usual and key in known:
            raise two_columns(where, known[key], name)
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
        some = columns[name][:_TRIED]
        if any(map(names_image, filter(None, some))):
            return name
    if usual:
        return usual[0]
    files = [
        name
        for name, column in columns.items()
        if column[:_TRIED] and all(map(named_as_image, column[:_TRIED]))
    ]
    return files[0] if files else None


def _split(columns: Mapping[str, list[str]]) -> str | None:
    for key in MAYBE_SPLITS:
        for name, column in columns.items():
            words = {*column}
            if plain(name) == key and words - {""} and words <= set(splits_of_words(words)):
                return name
    return None


def _only(columns: Mapping[str, list[str]]) -> str | None:
    """The only column that can say labels: of several values, not each its own."""
    left = [name for name in columns if plain(name) not in _BESIDE and not _counts(columns[name])]
    if len(left) != 1:
        return None
    values = list(filter(None, columns[left[0]]))
    return left[0] if len({*values}) < len(values) else None


def _counts(column: Sequence[str]) -> bool:
    """Whether a column only numbers the rows."""
    return all(text == str(place) for place, text in enumerate(column)) or all(
        text == str(place) for place, text in enumerate(column, 1)
    )
