"""Finds the image that a text in a table refers to: by path, end of the path, or name."""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeVar

from unfreeze.data.images.signatures import has_image_suffix
from unfreeze.errors import DataError
from unfreeze.text import as_name, as_text

AMBIGUOUS = -1  # result of an ambiguous lookup
T = TypeVar("T")


def path_variants(text: str) -> list[str]:
    """Paths that a text in a table may stand for: decoded, unchanged, with slashes."""
    if text.isascii() and "\\" not in text:
        return [text]
    return list(dict.fromkeys((as_name(text), text, text.replace("\\", "/"))))


class ImageLookup:
    """`lookup(text)`: position of the image, None, or SEVERAL if the text is ambiguous.

    A text matches an image by its path in the dataset, by an end of that path, by a longer path
    that ends in it, or by any of these without the suffix. Backslashes separate folders, as on
    Windows. Names are compared in Unicode NFC. A number also matches a name with leading zeros,
    which spreadsheets drop.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._exact = {name: position for position, name in enumerate(names)}

    def __call__(self, text: str) -> int | None:
        """The position, None or AMBIGUOUS."""
        for form in dict.fromkeys((text, as_text(text), text.replace("\\", "/"))):
            position = self._find(form)
            if position is not None:
                return position
        return None

    def _find(self, text: str) -> int | None:
        text = text.removeprefix("./")
        if not text:
            return None
        position = self._exact.get(text)
        if position is None:
            key = _form(text)
            position = self._forms.get(key, self._ends.get(key, self._match_end(key)))
        if position is None and not has_image_suffix(text):
            position = self._stems.get(key, self._stems.get(number := key.removesuffix(".0")))
            if position is None and number.isdecimal():
                position = self._numbers.get(int(number))
        return position

    def _match_end(self, text: str) -> int | None:
        """The image whose full path is an end of `text`."""
        rest = text.partition("/")[2]
        while rest:
            if rest in self._forms:
                return self._forms[rest]
            rest = rest.partition("/")[2]
        return None

    @functools.cached_property
    def _forms(self) -> dict[str, int]:
        return _unique((_form(name), position) for name, position in self._exact.items())

    @functools.cached_property
    def _ends(self) -> dict[str, int]:
        """Proper ends of all paths."""
        return _unique(
            (end, position) for name, position in self._forms.items() for end in _ends(name)[1:]
        )

    @functools.cached_property
    def _stems(self) -> dict[str, int]:
        """All paths and their ends, without the suffix."""
        path_variants = self._forms.items()
        return _unique(
            (end, position) for name, position in path_variants for end in _ends(_stem(name))
        )

    @functools.cached_property
    def _numbers(self) -> dict[int, int]:
        stems = self._stems.items()
        return _unique((int(stem), position) for stem, position in stems if stem.isdecimal())


def _form(name: str) -> str:
    """The key of a name: stripped, in Unicode NFC."""
    return name.strip() if name.isascii() else unicodedata.normalize("NFC", name).strip()


def _ends(name: str) -> list[str]:
    """`a/b/c`, `b/c`, `c`."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.rpartition(".")[0] or last)


def _unique(pairs: Iterable[tuple[T, int]]) -> dict[T, int]:
    """Each key with its position, or AMBIGUOUS if it has more than one."""
    positions: dict[T, int] = {}
    for key, position in pairs:
        if positions.setdefault(key, position) != position:
            positions[key] = AMBIGUOUS
    return positions


_DRIVE = re.compile(r"[A-Za-z]:")
# names without any of these are safe and need no change
_SUSPECT = ("\x00", ":", "..", "\n/", "\n./", "//", "/./")
BACKSLASH_NOTE = "Backslashes in the names of the archive are read as folder separators."


def with_slashes(name: str) -> str:
    """The name with slashes instead of backslashes (some Windows tools write these)."""
    return name.replace("\\", "/")


def refuse_path_traversal(name: str, where: str) -> None:
    """Raises DataError for names that are absolute, contain `..`, or name a drive."""
    name = with_slashes(name)
    if name.startswith("/") or "\x00" in name or _DRIVE.match(name) or ".." in name.split("/"):
        raise DataError(
            f"{where} contains a member named {name!r}, which points outside the archive.",
            "Pack the images again with relative names, or give the extracted folder.",
        )


def normalize_name(name: str) -> str:
    """The name without `.` parts and repeated slashes."""
    if name.startswith("./") or "//" in name or "/./" in name:
        return "/".join(part for part in name.split("/") if part not in ("", "."))
    return name


def normalize_names(names: Sequence[str], where: str) -> list[str]:
    """`plain` names; DataError for the first that points outside the archive."""
    # one search in all names is fast, and hardly any archive contains these
    joined = "\n" + "\n".join(names)
    if not any(part in joined for part in _SUSPECT):
        return list(names)
    for name in names:
        refuse_path_traversal(name, where)
    return [normalize_name(name) for name in names]


def skipped_note(special: Sequence[str]) -> tuple[str, ...]:
    """The note about links, devices and other special members, which are skipped."""
    if not special:
        return ()
    noun = "link or device" if len(special) == 1 else "links or devices"
    return (f"{len(special):,} {noun} in the archive skipped (first: {special[0]}).",)


def without_duplicates(names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Positions of the members to use, in order, and a note if names are repeated.

    Of members with the same name the last is used, as in extraction.
    """
    if len(set(names)) == len(names):
        return list(range(len(names))), ()
    last = {name: position for position, name in enumerate(names)}
    repeated = next(name for position, name in enumerate(names) if last[name] != position)
    note = (
        f"{len(names) - len(last):,} members are replaced by later ones of the same name, "
        f"as in extraction (first: {repeated})."
    )
    return sorted(last.values()), (note,)
