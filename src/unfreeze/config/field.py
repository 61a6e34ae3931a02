"""A setting: a dataclass field with type, default, help, choices and bounds.

Values arrive as text (command line), TOML values or Python objects; `coerce` converts and checks
them. None means "derived from the data", written `auto`, or the word `unset` of the setting if
nothing is derived.
"""

import dataclasses
import inspect
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal

from unfreeze.config.plugins import registered
from unfreeze.errors import UsageError
from unfreeze.text import is_name, path_argument

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Metadata of a settings field, beside its type and default."""

    help: str
    choices: tuple[str, ...] = ()
    shape: tuple[str, str] | None = (
        None  # also allowed: a regular expression, and its form in the help
    )
    low: float | None = None
    high: float | None = None
    positional: bool = False
    bare: str | None = None  # the value of a flag without a value
    unset: str = "auto"  # the word for None
    group: str = "options"
    basic: int = 0  # shown first in the help, in this order
    cli_only: bool = False  # an option of the call: not written to config.toml
    whole: bool = False  # a string is one value, not split at spaces and commas (paths)
    metavar: str = ""  # placeholder of the value in the help: FILE, DIR, RUN
    needed: bool = False  # required
    path: str = ""  # "input" or "output": the value is, or may be, a path
    verbatim: bool = False  # the flag keeps its underscores, and a bool takes a value
    plugins: str = ""  # also allowed: names that other packages register, of this kind

    @property
    def words(self) -> tuple[str, ...]:
        """The allowed values: the choices, registered names, and the form of `shape`."""
        names = (*self.choices, *(registered(self.plugins) if self.plugins else ()))
        return (*names, self.shape[1]) if self.shape else names

    def flag(self, name: str) -> str:
        """The command line flag of this setting."""
        return f"--{name}" if self.verbatim else flag(name)


def setting(default: Any, help: str, **extra: Any) -> Any:
    """A dataclass field whose metadata is a `Setting`."""
    return dataclasses.field(default=default, metadata={"knob": Setting(help, **extra)})


def settings_of(cls: type) -> dict[str, tuple[Setting, Any, Any]]:
    """Name -> (metadata, type, default) of each setting of a class, in order of definition."""
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    return {f.name: (f.metadata["knob"], hints[f.name], f.default) for f in fields}


def inputs_of(settings: Any) -> list[str]:
    """The values of all input path settings but `none`; some may be names instead of paths."""
    inputs: list[str] = []
    for name, (spec, _, _) in settings_of(type(settings)).items():
        value = getattr(settings, name)
        if spec.path == "input" and value:
            inputs += value if isinstance(value, tuple) else [value]
    return [value for value in inputs if value != "none"]


def split_type(kind: Any) -> tuple[Any, bool, bool]:
    """(scalar type, is it a tuple, may it be None) of a field's type."""
    optional = isinstance(kind, types.UnionType)
    if optional:
        kind = next(a for a in typing.get_args(kind) if a is not type(None))
    many = typing.get_origin(kind) is tuple
    return (typing.get_args(kind)[0] if many else kind), many, optional


def coerce(name: str, value: Any, entry: tuple[Setting, Any, Any]) -> Any:
    """The value converted to the field's type; UsageError if it is not allowed."""
    spec, kind, _ = entry
    scalar, many, optional = split_type(kind)
    derived = isinstance(value, str) and value in _derived(spec) and value not in spec.choices
    if optional and (value is None or derived):
        return None
    if spec.bare is not None and isinstance(value, bool):
        return spec.bare if value else None  # True or False from Python
    if not many:
        return _one(name, value, scalar, spec)
    items = _items(name, value, spec)
    if spec.choices:  # choices contain no commas
        items = [word for item in items for word in str(item).split(",")]
    return tuple(_one(name, item, scalar, spec) for item in items)


def _derived(spec: Setting) -> tuple[str, ...]:
    """The words for None; not for a path that is never derived: a file may be named `auto`."""
    if spec.path and spec.unset == "auto" and "(auto:" not in spec.help:
        return ()
    return ("auto", spec.unset)


def _items(name: str, value: Any, spec: Setting) -> Sequence[Any]:
    """The items of a list setting: text split at commas and spaces, or any iterable."""
    if isinstance(value, str) and not spec.whole:
        return value.replace(",", " ").split()
    if isinstance(value, str | bytes | os.PathLike) or not isinstance(value, Iterable):
        return (value,)
    if isinstance(value, Mapping | Set):  # no defined order
        raise UsageError(f"{spec.flag(name)} takes a list, not a {type(value).__name__}.")
    return list(value)


def _one(name: str, value: Any, scalar: Any, spec: Setting) -> Any:
    if scalar is bool:
        return _truth(name, value, spec)
    if spec.path:
        return _path(name, value, spec)
    if scalar is str and not isinstance(value, str | int | float | os.PathLike):
        raise UsageError(f"{spec.flag(name)} takes a string, not a {type(value).__name__}.")
    try:
        result = scalar(value)
        fits = not isinstance(value, bool) and (
            scalar is not int or not isinstance(value, float) or value.is_integer()
        )
    except (TypeError, ValueError):
        fits = False
    if not fits:
        what = {int: "an integer", float: "a number"}.get(scalar, "a string")
        raise UsageError(f"{spec.flag(name)} takes {what}, not {value!r}.", f"Help: {spec.help}")
    return _inside(name, result, spec)


def _path(name: str, value: Any, spec: Setting) -> str:
    """A path, or a name in place of one, as a string for the file system."""
    if not isinstance(value, str | bytes | os.PathLike):
        raise UsageError(
            f"{spec.flag(name)} takes a path, not {_article(type(value).__name__)}.",
            f"Help: {spec.help}",
        )
    path = path_argument(os.fsdecode(value))
    if not is_name(path):
        raise UsageError(f"{spec.flag(name)} {path[:80]!r} is not a valid file name.")
    return path


def _article(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def _truth(name: str, value: Any, spec: Setting) -> bool:
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        raise UsageError(f"{spec.flag(name)} takes true or false, not {value!r}.")
    return text in _TRUE


def _inside(name: str, value: Any, spec: Setting) -> Any:
    shaped = spec.shape is not None and re.fullmatch(spec.shape[0], str(value)) is not None
    if spec.choices and value not in spec.choices and not shaped and value not in spec.words:
        shown = name.upper() if spec.positional else spec.flag(name)
        raise UsageError(
            f"{shown} does not accept {value!r}.",
            f"Choose from: {', '.join(spec.words)}.",
        )
    if isinstance(value, (int, float)):
        if spec.low is not None and not value >= spec.low:
            raise UsageError(
                f"{spec.flag(name)} must be at least {spec.low:.12g}, not {value:.12g}."
            )
        if spec.high is not None and not value <= spec.high:
            raise UsageError(
                f"{spec.flag(name)} must be at most {spec.high:.12g}, not {value:.12g}."
            )
    return value


def flag(name: str) -> str:
    """`nmb_prototypes` -> `--nmb-prototypes`."""
    return "--" + name.replace("_", "-")


# options of the command line alone
SHELL_ONLY = ("json", "debug")
PROGRESS = inspect.Parameter(
    "progress", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=bool | None
)
PROGRESS_HELP = "show progress (None: if in a notebook or a terminal)"


def keyword_settings(cls: type) -> dict[str, tuple[Setting, Any, Any]]:
    """Name -> (metadata, type, default) of a Python function's keyword parameters."""
    return {name: entry for name, entry in python_settings(cls).items() if not entry[0].positional}


def python_settings(cls: type) -> dict[str, tuple[Setting, Any, Any]]:
    """The same with the positional parameters."""
    return {name: entry for name, entry in settings_of(cls).items() if name not in SHELL_ONLY}


def python_type(entry: tuple[Setting, Any, Any]) -> Any:
    """The annotation of a keyword: choices as literals, several values as a sequence."""
    spec, kind, _ = entry
    scalar, many, optional = split_type(kind)
    item: Any = scalar
    if spec.bare is not None:
        item = bool | Literal[tuple(choice for choice in spec.choices if choice != spec.bare)]
    elif spec.choices and not (spec.shape or spec.plugins) and scalar is str:
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
        for name, entry in keyword_settings(cls).items()
        if name not in names
    ]
    return signature.replace(parameters=[*first, *rest, PROGRESS])


def parameters_help(cls: type) -> str:
    """The "Parameters" section of a docstring: help and choices of each; None for auto."""
    known = python_settings(cls)
    lines = ["Parameters:"]
    for name in sorted(known, key=lambda name: not known[name][0].positional):
        spec, kind, _ = known[name]
        text = spec.help.replace("(auto:", "(None:") if split_type(kind)[2] else spec.help
        lines.append(f"    {name}: {text}.{_choices(spec)}")
    return "\n".join([*lines, f"    progress: {PROGRESS_HELP}."])


def _choices(spec: Setting) -> str:
    words = [repr(word) for word in spec.choices if word != spec.bare]
    words += ["True"] if spec.bare is not None else []
    words += [spec.shape[1]] if spec.shape else []
    return f" One of: {', '.join(words)}." if words else ""
