"""What people see while the tool works: lines and progress, always on stderr.

`Console` is what trainers ask for; the command line gives one that draws, libraries `Quiet`.
"""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from unfreeze.runtime.layout import Table
from unfreeze.runtime.runfolder import RunFolder
from unfreeze.text import clean

WARNING = "warning"  # the word before a warning, where there is no colour


class Advance(Protocol):
    """Moves a progress line: `advance(steps, text)`."""

    def __call__(self, steps: int, text: str = "") -> None:
        """`steps` further; `text` stands beside the bar."""


class Console(Protocol):
    """Lines, warnings and progress for people."""

    def say(self, text: str) -> None:
        """One line."""

    def warn(self, message: str) -> None:
        """A warning: `warning: MESSAGE`, and weight and colour on a terminal."""

    def table(self, table: Table) -> None:
        """Rows under a head, as wide as there is room."""

    def progress(
        self, label: str, total: int, done: int = 0
    ) -> contextlib.AbstractContextManager[Advance]:
        """A progress line over `total` steps, `done` of them behind us."""


class Quiet:
    """A console that shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, message: str) -> None:
        """As a line: whoever remembers lines remembers warnings."""
        self.say(f"{WARNING}: {message}")

    def table(self, table: Table) -> None:
        """As lines."""
        for line in table.lines():
            self.say(line)

    @contextlib.contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Yields an `advance` that shows nothing."""

        def advance(steps: int, text: str = "") -> None:
            """Nothing."""

        yield advance


class Hushed:
    """Another console without its lines: only progress is shown, of one piece of work of many."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, message: str) -> None:
        """Nothing: whoever runs the many says what is common to them."""

    def table(self, table: Table) -> None:
        """Nothing."""

    def progress(
        self, label: str, total: int, done: int = 0
    ) -> contextlib.AbstractContextManager[Advance]:
        """The other console's."""
        return self.console.progress(label, total, done)


class Logged:
    """Another console, whose lines also go to the run's log; they wait until there is a run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run: RunFolder | None = None
        self._waiting: list[str] = []

    def into(self, run: RunFolder) -> None:
        """From now on lines go to this run's log, those that were said before first."""
        self.run = run
        for text in self._waiting:
            run.log(text)
        self._waiting.clear()

    def say(self, text: str) -> None:
        """One line, shown and kept."""
        self.console.say(text)
        self._log(text)

    def warn(self, message: str) -> None:
        """A warning, shown and kept."""
        self.console.warn(message)
        self._log(f"{WARNING}: {message}")

    def table(self, table: Table) -> None:
        """Rows, shown and kept."""
        self.console.table(table)
        for line in table.lines():
            self._log(line)

    def _log(self, text: str) -> None:
        if self.run is None:
            self._waiting.append(text)
        else:
            self.run.log(text)

    def progress(
        self, label: str, total: int, done: int = 0
    ) -> contextlib.AbstractContextManager[Advance]:
        """The other console's."""
        return self.console.progress(label, total, done)


def told(name: str) -> str:
    """A name that can be written anywhere: names on a disk need not be UTF-8."""
    return clean(name)


def worded(count: int, one: str, several: str) -> str:
    """`1 image has no label`, `2 images have no label`: a count with the words it needs."""
    return f"{count:,} {one if count == 1 else several}"
