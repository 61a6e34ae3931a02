"""The types of `import unfreeze` for editors and type checkers, made from the settings.

Run as a module it prints `src/unfreeze/__init__.pyi`.
"""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, Literal

import unfreeze

# as their own modules have them: they take no settings
PLAIN = ("inspect", "load")
_HEAD = """\
# Made by `make docs` from the settings; every keyword of every verb with its type and default.
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Literal, overload

from numpy import ndarray
from PIL.Image import Image

from unfreeze import swav as swav
"""


def document() -> str:
    """The whole file."""
    verbs = [name for name in unfreeze.__all__ if inspect.isfunction(getattr(unfreeze, name))]
    made = {name: getattr(unfreeze, name) for name in verbs if name not in PLAIN}
    classes = {kind for verb in made.values() for kind in _returned(verb)}
    imports = [(kind.__module__, kind.__name__) for kind in classes]
    imports += [(f"unfreeze.api.{name}", name) for name in PLAIN]
    imports += [("unfreeze.errors", name) for name in _errors()]
    lines = [f"from {module} import {name} as {name}\n" for module, name in sorted(imports)]
    body = "".join(_stub(name, verb) for name, verb in made.items())
    names = "".join(f"    {name!r},\n" for name in unfreeze.__all__).replace("'", '"')
    return (
        f"{_HEAD}{''.join(lines)}\n__version__: str\n__all__ = [\n{names}]\n\n{body}".rstrip()
        + "\n"
    )


def _errors() -> list[str]:
    return [name for name in unfreeze.__all__ if isinstance(getattr(unfreeze, name), type)]


def _returned(verb: Callable[..., Any]) -> tuple[type, ...]:
    """The result, and the plan of a dry run where there is one."""
    kind = inspect.signature(verb).return_annotation
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _stub(name: str, verb: Callable[..., Any]) -> str:
    """The verb with its keywords; where `dry_run` returns a plan, once for each."""
    results = _returned(verb)
    if len(results) == 1:
        return _function(name, verb, {}, results, documented=True)
    made, plan = results
    kinds: list[tuple[dict[str, str], tuple[type, ...]]] = [
        ({"dry_run": "dry_run: Literal[False] = False"}, (made,)),
        ({"dry_run": "dry_run: Literal[True]"}, (plan,)),
        ({"dry_run": "dry_run: bool"}, results),
    ]
    return "".join(
        "@overload\n" + _function(name, verb, *kind, documented=place == 0)
        for place, kind in enumerate(kinds)
    )


def _function(
    name: str,
    verb: Callable[..., Any],
    fixed: dict[str, str],
    results: Sequence[type],
    *,
    documented: bool,
) -> str:
    lines, starred = [f"def {name}(\n"], False
    for one in inspect.signature(verb).parameters.values():
        if one.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            lines.append("    *,\n")
            starred = True
        lines.append(f"    {fixed.get(one.name) or _parameter(one)},\n")
    returned = " | ".join(kind.__name__ for kind in results)
    return "".join([*lines, f") -> {returned}:{_body(verb) if documented else ' ...'}\n"])


def _body(verb: Callable[..., Any]) -> str:
    """The docstring: editors show it from here, not from where the function stands."""
    words = (verb.__doc__ or "").rstrip().replace("\\", "\\\\")
    indented = "\n".join(f"    {line}".rstrip() for line in words.split("\n"))
    return f'\n    """{indented.lstrip()}\n    """'


def _parameter(one: inspect.Parameter) -> str:
    default = "" if one.default is inspect.Parameter.empty else f" = {_literal(one.default)}"
    return f"{one.name}: {rendered(one.annotation)}{default}"


def _literal(value: Any) -> str:
    return repr(value).replace("'", '"')


def rendered(kind: Any) -> str:
    """An annotation as it is written."""
    if kind is None or kind is type(None):
        return "None"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        # what a checker takes for the same stands once, as None does at the end
        parts = list(dict.fromkeys(rendered(part) for part in arguments if part is not type(None)))
        return " | ".join([*parts, *(["None"] if type(None) in arguments else [])])
    if origin is Literal:
        return f"Literal[{', '.join(_literal(value) for value in arguments)}]"
    if origin in (Iterable, Sequence, PathLike):
        return f"{origin.__name__}[{', '.join(map(rendered, arguments))}]"
    return str(kind.__name__)


if __name__ == "__main__":
    sys.stdout.write(document())
