"""Console output during a run, always on stderr: lines, warnings, tables and progress.

`Console` is the interface that trainers use; the command line passes one that draws, Python calls
may pass `QuietConsole`.
"""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.text_layout import TextTable
from unfreeze.text import without_surrogates

WARNING = "warning"  # the word before a warning


class ProgressCallback(Protocol):
    """Advances a progress bar: `advance(steps, text)`."""

    def __call__(self, steps: int, text: str = "") -> None:
        """Advance by `steps`; `text` is shown beside the bar."""


class Console(Protocol):
    """The interface for lines, warnings, tables and progress."""

    def say(self, text: str) -> None:
        """Show one line."""

    def warn(self, message: str) -> None:
        """Show a warning: `warning: MESSAGE`, bold and coloured on a terminal."""

    def table(self, table: TextTable) -> None:
        """Show a table, fitted to the width."""

    def progress(
        self, label: str, total: int, done: int = 0
    ) -> contextlib.AbstractContextManager[ProgressCallback]:
        """A progress bar of `total` steps, `done` of them completed."""


class QuietConsole:
    """A console that shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, message: str) -> None:
        """As a line, for subclasses that record lines."""
        self.say(f"{WARNING}: {message}")

    def table(self, table: TextTable) -> None:
        """As lines."""
        for line in table.lines():
            self.say(line)

    @contextlib.contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[ProgressCallback]:
        """Yields an `advance` that shows nothing."""

        def advance(steps: int, text: str = "") -> None:
            """Nothing."""

        yield advance


class ProgressOnlyConsole:
    """Wraps a console and shows only progress, for one of many runs."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, message: str) -> None:
        """Nothing: the caller reports warnings common to all runs."""

    def table(self, table: TextTable) -> None:
        """Nothing."""

    def progress(
        self, label: str, total: int, done: int = 0
    ) -> contextlib.AbstractContextManager[ProgressCallback]:
        """The other console's."""
        return self.console.progress(label, total, done)


class LoggingConsole:
    """Wraps a console and also writes its lines to the run's log, buffered until there is a run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run: RunFolder | None = None
        self._waiting: list[str] = []

    def into(self, run: RunFolder) -> None:
        """Write buffered and all further lines to this run's log."""
        self.run = run
        for text in self._waiting:
            run.log(text)
        self._waiting.clear()

    def say(self, text: str) -> None:
        """Show and log one line."""
        self.console.say(text)
        self._log(text)

    def warn(self, message: str) -> None:
        """Show and log a warning."""
        self.console.warn(message)
        self._log(f"{WARNING}: {message}")

    def table(self, table: TextTable) -> None:
        """Show and log a table."""
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
    ) -> contextlib.AbstractContextManager[ProgressCallback]:
        """The other console's."""
        return self.console.progress(label, total, done)


def printable(name: str) -> str:
    """A file name as printable text: names on disk need not be valid UTF-8."""
    return without_surrogates(name)


def pluralised(count: int, one: str, several: str) -> str:
    """`1 image has no label`, `2 images have no label`: a count with singular or plural."""
    return f"{count:,} {one if count == 1 else several}"
