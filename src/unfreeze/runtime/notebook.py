"""Console output of Python calls: HTML without widgets in notebooks, else as on a terminal."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from html import escape
from importlib import import_module
from typing import Any

from unfreeze.runtime.console import WARNING, Console, ProgressCallback, QuietConsole
from unfreeze.runtime.progress import make_console, time_left
from unfreeze.runtime.terminal import Environment
from unfreeze.runtime.text_layout import TextTable

REDRAWN = 0.2  # seconds between updates of a bar
_BAR = "width:14em;vertical-align:middle"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def python_console(progress: bool | None = None) -> Console:
    """The console of a Python call; `progress`: None shows output in notebooks and terminals."""
    notebook, world = in_notebook(), Environment()
    wanted = notebook or world.watched if progress is None else progress
    if not wanted:
        return QuietConsole()
    return NotebookConsole() if notebook else make_console(world)


class NotebookConsole:
    """A console that writes to the output of a notebook cell."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock

    def say(self, text: str) -> None:
        """Print one line."""
        sys.stdout.write(f"{text}\n")

    def warn(self, message: str) -> None:
        """Show a warning with a bold label."""
        _display(f"<b>{WARNING}:</b> {escape(message)}", f"{WARNING}: {message}")

    def table(self, table: TextTable) -> None:
        """Show a table."""
        from unfreeze.runtime.display import Display, html

        _display(html(Display(tables=[table])), "\n".join(table.lines()))

    @contextlib.contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[ProgressCallback]:
        """Yields an `advance` that moves a bar; the bar is removed when the block ends."""
        began = drawn = self.clock()
        count, shown_text = done, ""
        handle = _display(bar(label, done, total, "", ""), label, updates=True)

        def advance(steps: int, text: str = "") -> None:
            nonlocal count, shown_text, drawn
            count, shown_text, now = count + steps, text or shown_text, self.clock()
            if now - drawn >= REDRAWN or count >= total:
                drawn = now
                left = time_left(count, done, total, now - began)
                _update_display(handle, bar(label, count, total, shown_text, left))

        try:
            yield advance
        finally:
            _update_display(handle, "")


def bar(label: str, done: int, total: int, text: str, left: str) -> str:
    """HTML of a progress bar with a label, text and the time left."""
    share = 100 * done / total if total else 100
    words = " · ".join(escape(part) for part in (*text.split("  "), left) if part)
    progress_tag = f'<progress value="{done}" max="{max(1, total)}" style="{_BAR}"></progress>'
    return f"<div>{escape(label)} {progress_tag} {share:.0f} % {words}</div>"


def _display(drawn: str, plain: str, *, updates: bool = False) -> Any:
    display: Any = import_module("IPython.display").display
    data = {"text/html": drawn, "text/plain": plain}
    return display(data, raw=True, display_id=updates or None)


def _update_display(handle: Any, drawn: str) -> None:
    if handle is not None:
        handle.update({"text/html": drawn, "text/plain": ""}, raw=True)
