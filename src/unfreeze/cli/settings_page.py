"""docs/SETTINGS.md, generated from the settings; run as a module it prints the page."""

import sys
from typing import Any

from unfreeze.cli.parser import default_text, in_order_of_help
from unfreeze.cli.registry import SETTINGS, description, settings_class
from unfreeze.config.field import Setting, settings_of, split_type

_INTRO = """\
# Settings

Every setting of every command: a flag on the command line, a key in a `--config` file (kebab-case
or snake_case), a keyword in Python (snake_case). `auto` (None in Python) is derived from the images
or the weights; `--dry-run` shows the reason. Made by `make docs` from `src/unfreeze/config/`.
"""


def document() -> str:
    """The page as Markdown."""
    return _INTRO + "".join(_section(verb) for verb in SETTINGS)


def _section(verb: str) -> str:
    known = settings_of(settings_class(verb))
    positionals = [name for name, entry in known.items() if entry[0].positional]
    flags = [name for name in in_order_of_help(known) if name not in positionals]
    rows = [_row(name, known[name]) for name in (*positionals, *flags)]
    head = "| setting | values | default | description |\n|---|---|---|---|\n"
    return f"\n## {verb}\n\n{description(verb)}\n\n{head}" + "".join(rows)


def _row(name: str, entry: tuple[Setting, Any, Any]) -> str:
    shown = f"`{name.upper()}`" if entry[0].positional else f"`{entry[0].flag(name)}`"
    default = f"`{default_text(entry)}`" if default_text(entry) else ""
    return f"| {shown} | {_takes(entry)} | {default} | {entry[0].help.replace('|', '&#124;')} |\n"


def _takes(entry: tuple[Setting, Any, Any]) -> str:
    spec, kind, _ = entry
    scalar, many, _ = split_type(kind)
    if scalar is bool:
        return "`true`, `false`" if spec.verbatim else ""
    if spec.bare is not None:
        return f"nothing, or {', '.join(f'`{c}`' for c in spec.choices if c != spec.bare)}"
    if spec.choices:
        return ", ".join(f"`{choice}`" for choice in spec.words)
    word = {int: "integer", float: "number"}.get(scalar, "text")
    bounds = "".join(
        f" {sign} {bound:.12g}"
        for sign, bound in (("≥", spec.low), ("≤", spec.high))
        if bound is not None
    )
    return f"{word}{'s' if many else ''}{bounds}"


if __name__ == "__main__":
    sys.stdout.write(document())
