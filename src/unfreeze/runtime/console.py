"""What people see while the tool works: lines and progress, always on stderr.

`Console` is what trainers ask for; the command line gives one that draws, libraries `Quiet`.
"""

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Advance(Protocol):
    """Moves a progress line: `advance(steps, text)`."""

    def __call__(self, steps: int, text: str = "") -> None:
        """`steps` further; `text` stands beside the bar."""


class Console(Protocol):
    """Lines and progress for people."""

    def say(self, text: str) -> None:
        """One line."""

    def progress(
        self, label: str, total: int, done: int = 0
    ) -> contextlib.AbstractContextManager[Advance]:
        """A progress line over `total` steps, `done` of them behind us."""


class Quiet:
    """A console that shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextlib.contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Yields an `advance` that shows nothing."""

        def advance(steps: int, text: str = "") -> None:
            """Nothing."""

        yield advance
