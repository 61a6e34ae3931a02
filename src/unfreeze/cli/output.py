"""Results on stdout: one JSON document, or a few lines of text."""

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from unfreeze.runtime.display import Display, Displayed, text
from unfreeze.runtime.text_layout import csv_text
from unfreeze.text import clean_all


def plain(value: Any) -> Any:
    """`value` for JSON: dataclasses as objects, arrays as lists, non-finite numbers as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        keys = getattr(value, "keys", None)
        if callable(keys):  # only fields that were asked for
            names = list(keys())
        fields = {name: plain(getattr(value, name)) for name in names}
        more = value.more_fields() if isinstance(value, Displayed) else {}
        return fields | {name: plain(item) for name, item in more.items()}
    if isinstance(value, Mapping):
        return {clean_all(str(key)): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # a NumPy array or scalar, or a tensor
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, str | PurePath):
        return clean_all(str(value))  # file names need not be UTF-8
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(result: Any) -> str:
    """One JSON document."""
    return json.dumps(plain(result), ensure_ascii=False, allow_nan=False)


def as_text(verb: str, result: Any, width: int | None = None, *, colour: bool = False) -> str:
    """The result as text; empty if it was printed already, as a plan is."""
    if verb == "predict" and isinstance(result, list):
        return _predictions(result)
    if verb == "completion":
        return str(result.script)  # a program: its lines must not be wrapped
    if not isinstance(result, Displayed) or result.shown_before:
        return ""
    return text(result.display(), width, colour=colour)


def command_after_dry_run(
    verb: str, words: Sequence[str], width: int | None, *, colour: bool = False
) -> str:
    """The command that runs what a dry run has planned."""
    arguments = [word for word in words if word != "--dry-run"]
    if verb != "demo" and not any(word.partition("=")[0] == "--out" for word in arguments):
        arguments += ["--out", "RUN"]
    command = shlex.join(["unfreeze", verb, *arguments])
    return text(Display(next=[command]), width, colour=colour)


def _predictions(result: Any) -> str:
    """CSV: path, label, probability and what was asked for; or the values of another task."""
    columns, rows = result.cells()
    return csv_text([columns, *rows]).rstrip("\n")
