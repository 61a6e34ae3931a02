"""The Python side of a command: typed keywords, a docstring, and error messages with keywords."""

import functools
import inspect
import re
import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import unfreeze
from unfreeze.config.field import (
    SHELL_ONLY,
    Setting,
    keyword_settings,
    parameters_help,
    python_settings,
    signature_of,
    split_type,
)
from unfreeze.errors import UnfreezeError, UsageError

F = TypeVar("F", bound=Callable[..., Any])
Known = dict[str, tuple[Setting, Any, Any]]

_FLAG = re.compile(r"--([a-z][a-z0-9_-]*)(?: ([^\s]+))?")
_COMMAND = re.compile(r"unfreeze ([a-z]+) ([^`]+?)(?=$|`|\.$)")
_ENDS = ",.;:)"


def python_call(cls: type) -> Callable[[F], F]:
    """Decorator: adds the settings of `cls` to the signature, docstring and error messages.

    The function receives them as `**settings`.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*arguments: Any, **settings: Any) -> Any:
            try:
                _refuse_shell_only(settings)
                return function(*arguments, **settings)
            except UnfreezeError as error:
                use_python_keywords(error, python_settings(cls))
                raise

        call.__signature__ = signature_of(function, cls)  # type: ignore[attr-defined]
        parameters_doc = _keywords_in(parameters_help(cls), python_settings(cls))
        call.settings = cls  # type: ignore[attr-defined]
        call.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{parameters_doc}\n"
        return call  # type: ignore[return-value]

    return decorate


def _refuse_shell_only(settings: dict[str, Any]) -> None:
    for name in SHELL_ONLY:
        if name in settings:
            raise UsageError(
                f"Unexpected keyword {name!r}: it is for the command line only.",
                "In Python the result is returned and errors are raised.",
            )


def use_python_keywords(error: UnfreezeError, known: Known) -> None:
    """Replace command line flags in the error's message by Python keywords, in place."""
    error.sentence = flags_to_keywords(error.sentence, known)
    error.next_step = flags_to_keywords(error.next_step, known)
    error.args = (error.sentence,)


def flags_to_keywords(text: str, known: Known) -> str:
    """`--batch-size 8` as `batch_size=8`, `--overwrite` as `overwrite=True`, commands as calls."""
    split_type, end = [], 0
    for match in _COMMAND.finditer(text):
        if match[1] in unfreeze.__all__:
            split_type += [_keywords_in(text[end : match.start()], known), _as_call(match)]
            end = match.end()
    return "".join([*split_type, _keywords_in(text[end:], known)])


def _keywords_in(text: str, known: Known) -> str:
    return _FLAG.sub(lambda match: _as_keyword(match, known), text)


def _as_keyword(match: re.Match[str], known: Known) -> str:
    name, after = match[1].replace("-", "_"), match[2] or ""
    if name not in known:
        return match[0]
    spec, kind, _ = known[name]
    scalar = split_type(kind)[0]
    value = after.rstrip(_ENDS)
    ending = after[len(value) :]
    rest = f" {after}" if after else ""
    if scalar is bool or (spec.bare is not None and value not in spec.choices):
        return f"{name}=True{rest}"
    if value.isupper() and value.isalpha():
        return f"{name}={value}{ending}"  # RUN, NAME: a placeholder
    if scalar in (int, float):
        return f"{name}={value}{ending}" if _is_number(value) else f"{name}{rest}"
    if value in spec.choices or re.fullmatch(r"[a-z]+:\S+|[\w.-]*/\S*|\S+\.\w{2,5}", value):
        return f"{name}={value!r}{ending}"
    return f"{name}{rest}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_call(match: re.Match[str]) -> str:
    """`unfreeze finetune data --out run --resume` as a Python call; unchanged if it cannot be."""
    verb, arguments_text = match[1], match[2]
    settings = getattr(getattr(unfreeze, verb), "settings", None)
    known = {} if settings is None else keyword_settings(settings)
    try:
        tokens = shlex.split(arguments_text)
    except ValueError:
        return match[0]
    arguments: list[str] = []
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--"):
            arguments.append(token if token.isupper() else repr(token))
            continue
        name = token[2:].replace("-", "_")
        if name not in known:
            return match[0]
        alone = not tokens or tokens[0].startswith("--")
        value = "True" if alone else _value(tokens.pop(0), known[name])
        arguments.append(f"{name}={value}")
    return f"unfreeze.{verb}({', '.join(arguments)})"


def _value(text: str, entry: tuple[Setting, Any, Any]) -> str:
    number = split_type(entry[1])[0] in (int, float) and _is_number(text)
    return text if number or text.isupper() else repr(text)
