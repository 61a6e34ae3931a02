"""Signatures and docstrings of the Python functions, generated from their settings."""

import inspect
import os
from collections.abc import Sequence
from typing import Any, Literal

from unfreeze.settings.knob import Knob, knobs, parts

# options of the command line alone
SHELL_ONLY = ("json", "debug")
PROGRESS = inspect.Parameter(
    "progress", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=bool | None
)
PROGRESS_HELP = "show progress (None: if in a notebook or a terminal)"


def keywords(cls: type) -> dict[str, tuple[Knob, Any, Any]]:
    """Name -> (metadata, type, default) of a Python function's keyword parameters."""
    return {name: entry for name, entry in parameters(cls).items() if not entry[0].positional}


def parameters(cls: type) -> dict[str, tuple[Knob, Any, Any]]:
    """The same with the positional parameters."""
    return {name: entry for name, entry in knobs(cls).items() if name not in SHELL_ONLY}


def python_type(entry: tuple[Knob, Any, Any]) -> Any:
    """The annotation of a keyword: choices as literals, several values as a sequence."""
    spec, kind, _ = entry
    scalar, many, optional = parts(kind)
    item: Any = scalar
    if spec.bare is not None:
        item = bool | Literal[tuple(choice for choice in spec.choices if choice != spec.bare)]
    elif spec.choices and not spec.shape and scalar is str:
        item = Literal[spec.choices]
    elif spec.path and scalar is str:
        item = str | os.PathLike[str]
    elif scalar is float:
        item = float
    annotation: Any = item | Sequence[item] if many else item
    return annotation | None if optional else annotation


def signature_of(function: Any, cls: type) -> inspect.Signature:
    """The function's parameters, then every setting of `cls` with its type and default."""
    signature = inspect.signature(function)
    named = [
        p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    first = [p for p in named if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    names = {p.name for p in named}
    rest = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=entry[2],
            annotation=python_type(entry),
        )
        for name, entry in keywords(cls).items()
        if name not in names
    ]
    return signature.replace(parameters=[*first, *rest, PROGRESS])


def help_of(cls: type) -> str:
    """The "Parameters" section of a docstring: help and choices of each; None for auto."""
    known = parameters(cls)
    lines = ["Parameters:"]
    for name in sorted(known, key=lambda name: not known[name][0].positional):
        spec, kind, _ = known[name]
        text = spec.help.replace("(auto:", "(None:") if parts(kind)[2] else spec.help
        lines.append(f"    {name}: {text}.{_choices(spec)}")
    return "\n".join([*lines, f"    progress: {PROGRESS_HELP}."])


def _choices(spec: Knob) -> str:
    words = [repr(word) for word in spec.choices if word != spec.bare]
    words += ["True"] if spec.bare is not None else []
    words += [spec.shape[1]] if spec.shape else []
    return f" One of: {', '.join(words)}." if words else ""
