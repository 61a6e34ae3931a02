"""Which image a text in a list means: its path, an end of it, or its bare name."""

import functools
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeVar

from unfreeze.data.signatures import named_as_image
from unfreeze.text import as_name, as_text

SEVERAL = -1
T = TypeVar("T")


def forms(text: str) -> list[str]:
    """What a path in a list can be on the disk: a name by its text, as it stands, with slashes."""
    if text.isascii() and "\\" not in text:
        return [text]
    return list(dict.fromkeys((as_name(text), text, text.replace("\\", "/"))))


class Lookup:
    """`lookup(text)`: the place of the image of that name, None, or SEVERAL where it fits several.

    A text names an image by its path in the data, by an end of it, by a path of which it is the
    end, or by any of these without the file's ending. Backslashes separate folders, as lists from
    Windows have them; the forms that Unicode has for one character are the same. A number
    without an image of that name means the image with zeros before it, which spreadsheets drop.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._whole = {name: place for place, name in enumerate(names)}

    def __call__(self, text: str) -> int | None:
        """The place, None or SEVERAL."""
        for form in dict.fromkeys((text, as_text(text), text.replace("\\", "/"))):
            found = self._found(form)
            if found is not None:
                return found
        return None

    def _found(self, text: str) -> int | None:
        text = text.removeprefix("./")
        if not text:
            return None
        place = self._whole.get(text)
        if place is None:
            key = _form(text)
            place = self._forms.get(key, self._ends.get(key, self._beyond(key)))
        if place is None and not named_as_image(text):
            place = self._stems.get(key, self._stems.get(number := key.removesuffix(".0")))
            if place is None and number.isdecimal():
                place = self._numbers.get(int(number))
        return place

    def _beyond(self, text: str) -> int | None:
        """The image whose whole path is an end of `text`."""
        rest = text.partition("/")[2]
        while rest:
            if rest in self._forms:
                return self._forms[rest]
            rest = rest.partition("/")[2]
        return None

    @functools.cached_property
    def _forms(self) -> dict[str, int]:
        return _once((_form(name), place) for name, place in self._whole.items())

    @functools.cached_property
    def _ends(self) -> dict[str, int]:
        """Every proper end of every path."""
        return _once((end, place) for name, place in self._forms.items() for end in _ends(name)[1:])

    @functools.cached_property
    def _stems(self) -> dict[str, int]:
        """Every path and every end of one, without the file's ending."""
        forms = self._forms.items()
        return _once((end, place) for name, place in forms for end in _ends(_stem(name)))

    @functools.cached_property
    def _numbers(self) -> dict[int, int]:
        stems = self._stems.items()
        return _once((int(stem), place) for stem, place in stems if stem.isdecimal())


def _form(name: str) -> str:
    """Lists say nothing of spaces around a name, and little of how a letter is put together."""
    return name.strip() if name.isascii() else unicodedata.normalize("NFC", name).strip()


def _ends(name: str) -> list[str]:
    """`a/b/c`, `b/c`, `c`."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.rpartition(".")[0] or last)


def _once(found: Iterable[tuple[T, int]]) -> dict[T, int]:
    """Each key with its place, or SEVERAL where it has more than one."""
    places: dict[T, int] = {}
    for key, place in found:
        if places.setdefault(key, place) != place:
            places[key] = SEVERAL
    return places
