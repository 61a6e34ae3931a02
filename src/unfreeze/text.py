r"""Names as text: a file's name need not be UTF-8, and everything that we write is.

In text a byte that is no UTF-8 stands as `\xe9`; where a name itself holds such letters, its
backslash stands as `\x5c`. So every name has one text, and every text means one name.
"""

import os
import re
import sys
from collections.abc import Mapping
from typing import Any

_ESCAPED = rb"\\x(5c|[89a-f][0-9a-f])"
_AS_BYTES = re.compile(_ESCAPED)
_LIKE_ONE = re.compile(r"\\(?=x(?:5c|[89a-f][0-9a-f]))")
_HALF = re.compile("[\ud800-\udfff]")
# what moves a terminal's cursor, or ends a line where none should end
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_NO_COLOUR = re.compile(f"(?!\x1b\\[[0-9;]*m){_CONTROL.pattern}")
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def as_text(name: str) -> str:
    """The name of a file, as the system gave it, as text; `as_name` is the way back."""
    if name.isascii() and "\\" not in name:
        return name
    return text_of(_bytes_of(name))


def as_texts(names: list[str]) -> list[str]:
    """The text of each; next to always they are their own, which is said of all at once."""
    together = "/".join(names)
    if together.isascii() and "\\" not in together:
        return names
    return [as_text(name) for name in names]


def text_of(raw: bytes) -> str:
    """The text of a name by its bytes."""
    escaped = _LIKE_ONE.sub(r"\\x5c", raw.decode("utf-8", "surrogateescape"))
    return escaped.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def as_name(text: str) -> str:
    """The name that a text means, as the system's functions take it."""
    if text.isascii() and "\\x" not in text:
        return text
    raw = _AS_BYTES.sub(lambda found: bytes([int(found[1], 16)]), _utf_8(text))
    try:
        return os.fsdecode(raw)
    except UnicodeDecodeError:
        return text  # where names are never bytes (Windows) these letters are the name's own


def given_path(name: str) -> str:
    """The path that somebody means who wrote `name`: `~` is a home, and texts of ours are names.

    Of the two that a text can mean it is the one that exists, so that what we print can be pasted.
    """
    name = os.path.expanduser(name)  # noqa: PTH111 - a Path would take `./` and more away
    other = as_name(name)
    if other == name or os.path.lexists(name):  # False for what is no name at all
        return name
    # where a locale knows ASCII alone no other text is a name as it stands
    needed = not is_name(name) and not has_halves(name)
    return other if needed or os.path.lexists(other) else name


def is_name(name: str) -> bool:
    """Whether the system can have a file of this name: no NUL, no half of a character."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def has_halves(text: str) -> bool:
    """Whether there are halves of characters in it, as in names that are no UTF-8."""
    return _HALF.search(text) is not None


def clean(text: str) -> str:
    """The text without halves of characters: what cannot be written in UTF-8 stands escaped."""
    if not has_halves(text):
        return text
    return _bytes_of(text).decode("utf-8", "backslashreplace")


def clean_all(value: Any) -> Any:
    """Plain values (dicts, lists, texts) with every name in them as text."""
    if isinstance(value, str):
        return as_text(value) if has_halves(value) else value
    if isinstance(value, Mapping):
        return {clean_all(key): clean_all(item) for key, item in value.items()}
    return [clean_all(item) for item in value] if isinstance(value, (list, tuple)) else value


def for_screen(text: str, *, coloured: bool = False) -> str:
    """As `clean`; also what would move a terminal's cursor, or clear it, stands escaped.

    Where the text is `coloured` its colours stay.
    """
    control = _NO_COLOUR if coloured else _CONTROL
    return control.sub(lambda found: f"\\x{ord(found[0]):02x}", clean(text))


def decoded(raw: bytes) -> str:
    """The text of a file that people wrote: UTF-8 with or without a mark, or UTF-16 with one."""
    encoding = next((name for mark, name in _BOMS if raw.startswith(mark)), "utf-8")
    return raw.decode(encoding)


def _bytes_of(name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return _utf_8(name)  # no name of this system's, but text from elsewhere


def _utf_8(text: str) -> bytes:
    try:
        return text.encode("utf-8", sys.getfilesystemencodeerrors())
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
