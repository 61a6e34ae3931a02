"""Renders a command's result as text, with colours, or as HTML in a notebook.

A result's `display()` returns a `Display`; `text` and `html` render it.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from unfreeze.runtime.console import WARNING
from unfreeze.runtime.text_layout import TextTable, command_lines, facts, wrapped

ROWS = 16  # table rows in a `repr`, which should fit a screen
SCROLLED = 200  # table rows in a notebook, which scrolls
LISTED = 8  # warnings and notes in both
WIDTH = 98  # cells of a line in a `repr`
PLOT_SIZE = (1000, 900)  # pixels of a plot in a notebook, at most

Part = tuple[str, str]  # text and style
_STYLE = "border-collapse:collapse;margin:.4em 0"


@dataclass(frozen=True)
class Display:
    """The parts of a result, in order.

    `lead`: the main result, in sentences; `warnings`: messages; `facts`: (name, value); `tables`;
    `notes`; `files`: (description, path) of written files; `next`: suggested commands; `plots`:
    (description, path) of PNG files, which notebooks show.
    """

    lead: Sequence[str] = ()
    warnings: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[TextTable] = ()
    notes: Sequence[str] = ()
    files: Sequence[tuple[str, str]] = ()
    next: Sequence[str] = ()
    plots: Sequence[tuple[str, str]] = ()

    def short(self, rows: int = ROWS) -> "Display":
        """A copy with the first `rows` of each table and the first warnings and notes."""
        return replace(
            self,
            tables=[table.first(rows) for table in self.tables],
            warnings=_first_lines(self.warnings),
            notes=_first_lines(self.notes),
        )


def _first_lines(lines: Sequence[str]) -> Sequence[str]:
    more = len(lines) - LISTED
    return lines if more <= 0 else [*lines[:LISTED], f"and {more:,} more"]


class Displayed:
    """Base class of results: `str` shows everything, `repr` and notebooks a screenful.

    `shown_before`: whether the console showed it already while it was computed, as with a plan.
    """

    shown_before: ClassVar[bool] = False

    def more_fields(self) -> Mapping[str, Any]:
        """Fields whose names depend on the task, such as `val_miou`; they also stand in JSON."""
        return {}

    def __getattr__(self, name: str) -> Any:
        """One of `more_fields`."""
        own = getattr(type(self), "__dataclass_fields__", {})
        if name.startswith("_") or name in own or name not in (more := self.more_fields()):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return more[name]

    def display(self) -> Display:
        """The parts to show."""
        raise NotImplementedError

    def rows(self) -> list[dict[str, Any]]:
        """The rows for `to_pandas`: one dictionary per row."""
        return [dict(vars(self))]

    def to_pandas(self) -> Any:
        """The result's rows as a pandas.DataFrame; ImportError without `unfreeze[pandas]`."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: pip install 'unfreeze[pandas]'") from error
        return pandas.DataFrame(self.rows())

    def __str__(self) -> str:
        return text(self.display())

    def __repr__(self) -> str:
        return text(self.display().short(), WIDTH)

    def _repr_html_(self) -> str:
        return html(self.display().short(SCROLLED))

    def _ipython_display_(self) -> None:
        """Show the result in IPython and notebooks: as HTML, then each plot as an image."""
        display: Any = import_module("IPython.display").display
        display({"text/html": self._repr_html_(), "text/plain": repr(self)}, raw=True)
        for description, path in self.display().plots:
            image = {"image/png": png_for_notebook(path), "text/plain": f"{description}: {path}"}
            display(image, raw=True)


def text(display: Display, width: int | None = None, *, colour: bool = False) -> str:
    """The display as lines of at most `width` cells; None: no limit, for files."""
    blocks = [block for block in _blocks(display, width) if block]
    lines = "\n\n".join("\n".join(_render_line(line, colour) for line in block) for block in blocks)
    return lines


def _blocks(display: Display, width: int | None) -> list[list[list[Part]]]:
    """Blocks of lines; a line is a list of (text, style)."""
    warnings = [wrapped(f"{WARNING}: {message}", width) for message in display.warnings]
    label_width = len(WARNING) + 1
    warned = [
        [(line[:label_width], "bold yellow"), (line[label_width:], "bold")]
        if not index
        else [(line, "bold")]
        for lines in warnings
        for index, line in enumerate(lines)
    ]
    tables = [_titled(table, width) for table in display.tables if table.rows]
    commands = [line for one in display.next for line in command_lines(one, width)]
    return [
        [[(line, "bold")] for lead in display.lead for line in wrapped(lead, width)],
        warned,
        _plain(facts(display.facts, width)),
        *tables,
        _plain([line for note in display.notes for line in wrapped(note, width)]),
        _plain(facts(display.files)),  # paths are never wrapped
        [[("Next:", "bold")], *([(line, "cyan")] for line in commands)] if commands else [],
    ]


def _plain(lines: Sequence[str]) -> list[list[Part]]:
    return [[(line, "")] for line in lines]


def _titled(table: TextTable, width: int | None) -> list[list[Part]]:
    title: list[list[Part]] = [[(table.title, "bold")]] if table.title else []
    return title + _plain(table.lines(width))


def _render_line(parts: Sequence[Part], colour: bool) -> str:
    """A line as a string, with ANSI colour codes if `colour`."""
    if not colour:
        return "".join(words for words, _ in parts).rstrip()
    from rich.style import Style

    return "".join(Style.parse(style).render(words) if style else words for words, style in parts)


# ----------------------------------------------------------------------------- notebooks


def html(display: Display) -> str:
    """The display as HTML in the notebook's colours; long tables scroll."""
    parts = [f"<p><b>{escape(lead)}</b></p>" for lead in display.lead]
    parts += [f"<p><b>{WARNING}:</b> {escape(message)}</p>" for message in display.warnings]
    parts += [_rows((), display.facts)] if display.facts else []
    for table in display.tables:
        parts += [f"<p><b>{escape(table.title)}</b></p>"] if table.title else []
        parts.append(_rows(table.head, table.rows, [table.numeric(c) for c in _columns(table)]))
    parts += [f"<p>{escape(note)}</p>" for note in display.notes]
    parts += [_rows((), display.files)] if display.files else []
    if display.next:
        commands = "\n".join(escape(command_line) for command_line in display.next)
        parts.append(f"<p>Next:</p><pre>{commands}</pre>")
    return f'<div class="unfreeze">{"".join(parts)}</div>'


def png_for_notebook(path: str | Path) -> str:
    """A PNG file as base64, at most `PLOT_SIZE` pixels large: notebooks store what they show."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail(PLOT_SIZE, Image.Resampling.LANCZOS)
    # the octree has thin lines in their own colours, where the median cut mixes them
    small = small.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _columns(table: TextTable) -> range:
    return range(len(table.head))


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> str:
    def cell(kind: str, index: int, words: str) -> str:
        side = "right" if index < len(right) and right[index] else "left"
        return f'<{kind} style="text-align:{side}">{escape(words)}</{kind}>'

    names = "".join(cell("th", index, name) for index, name in enumerate(head))
    body = "".join(
        f'<tr><td colspan="{len(head)}" style="text-align:left"><i>{escape(row[0])}</i></td></tr>'
        if head and len(row) < len(head)
        else f"<tr>{''.join(cell('td', i, words) for i, words in enumerate(row))}</tr>"
        for row in rows
    )
    top = f"<thead><tr>{names}</tr></thead>" if head else ""
    table = f'<table style="{_STYLE}">{top}<tbody>{body}</tbody></table>'
    return f'<div style="max-height:24em;overflow:auto">{table}</div>'
