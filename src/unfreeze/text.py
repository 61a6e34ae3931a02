r"""File names as text: names need not be valid UTF-8, but all files written here are UTF-8.

A byte that is not valid UTF-8 is escaped as `\xe9`; if a name contains such a sequence literally,
its backslash is escaped as `\x5c`. The mapping between names and texts is one-to-one.
"""

import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

_ESCAPED = rb"\\x(5c|[89a-f][0-9a-f])"
_ESCAPE = re.compile(_ESCAPED)
_LITERAL_ESCAPE = re.compile(r"\\(?=x(?:5c|[89a-f][0-9a-f]))")
_SURROGATE = re.compile("[\ud800-\udfff]")
# control characters and line separators, which move a terminal's cursor or break a line
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_NO_COLOUR = re.compile(f"(?!\x1b\\[[0-9;]*m){_CONTROL.pattern}")
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def as_text(name: str) -> str:
    """A file name, as returned by the OS, as text; `as_name` is the inverse."""
    if name.isascii() and "\\" not in name:
        return name
    return text_of(_bytes_of(name))


def as_texts(names: list[str]) -> list[str]:
    """`as_text` of each name; fast if all are plain ASCII."""
    joined = "/".join(names)
    if joined.isascii() and "\\" not in joined:
        return names
    return [as_text(name) for name in names]


def text_of(raw: bytes) -> str:
    """The text of a name given as bytes."""
    escaped = _LITERAL_ESCAPE.sub(r"\\x5c", raw.decode("utf-8", "surrogateescape"))
    return escaped.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def as_name(text: str) -> str:
    """The file name of a text, as `os` functions accept it; the inverse of `as_text`."""
    if text.isascii() and "\\x" not in text:
        return text
    raw = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), _utf_8(text))
    try:
        return os.fsdecode(raw)
    except UnicodeDecodeError:
        return text  # on Windows names are not bytes, so the text is the name


def path_argument(name: str) -> str:
    """The path of a user's argument: `~` is expanded, and escapes as printed by us are decoded.

    If `name` exists as written it is returned as is, so that printed paths can be pasted back.
    """
    name = os.path.expanduser(name)  # noqa: PTH111 - a Path would remove `./` and more
    decoded_name = as_name(name)
    if decoded_name == name or os.path.lexists(name):  # False for strings that cannot be names
        return name
    # in an ASCII locale a text with other characters cannot be a name as written
    escaped = not is_name(name) and not has_surrogates(name)
    return decoded_name if escaped or os.path.lexists(decoded_name) else name


def is_name(name: str) -> bool:
    """Whether the OS allows a file of this name: no NUL, no character it cannot encode."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def has_surrogates(text: str) -> bool:
    """Whether the text contains surrogates, as names that are not valid UTF-8 do."""
    return _SURROGATE.search(text) is not None


def without_surrogates(text: str) -> str:
    """The text with surrogates escaped, so that it can be encoded as UTF-8."""
    if not has_surrogates(text):
        return text
    return _bytes_of(text).decode("utf-8", "backslashreplace")


def clean_all(value: Any) -> Any:
    """JSON-like values with file names as text, and NaN and infinity, which JSON lacks, as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _clean(value, clean_all)


def clean_names(value: Any) -> Any:
    """JSON-like values with file names as text."""
    return _clean(value, clean_names)


def _clean(value: Any, inside: Callable[[Any], Any]) -> Any:
    if isinstance(value, str):
        return as_text(value) if has_surrogates(value) else value
    if isinstance(value, Mapping):
        return {inside(key): inside(item) for key, item in value.items()}
    return [inside(item) for item in value] if isinstance(value, (list, tuple)) else value


def for_screen(text: str, *, coloured: bool = False) -> str:
    """As `clean`, with control characters escaped too; `coloured` keeps ANSI colour codes."""
    control = _NO_COLOUR if coloured else _CONTROL
    return control.sub(lambda match: f"\\x{ord(match[0]):02x}", without_surrogates(text))


def decode_text(raw: bytes) -> str:
    """The text of a file's bytes: UTF-8 with or without a BOM, or UTF-16 with one."""
    encoding = next((name for mark, name in _BOMS if raw.startswith(mark)), "utf-8")
    return raw.decode(encoding)


def _bytes_of(name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return _utf_8(name)  # not a file name of this system


def _utf_8(text: str) -> bytes:
    try:
        return text.encode("utf-8", sys.getfilesystemencodeerrors())
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
