"""The world outside as an object, so that tests can call the command line in-process."""

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from unfreeze.runtime.layout import sentences
from unfreeze.text import clean, for_screen

NARROWEST, USUAL = 40, 80  # cells of a line: at least, and where a terminal does not say


def columns(stream: TextIO) -> int | None:
    """`COLUMNS`, else what the terminal says; None for what is no terminal."""
    told = os.environ.get("COLUMNS", "")
    if told.isdigit() and int(told):
        return max(NARROWEST, int(told))
    if not stream.isatty():
        return None
    try:
        found = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # it says to be a terminal and has no number, or no size
        found = 0
    return max(NARROWEST, found) if found else USUAL


@dataclasses.dataclass
class World:
    """Streams, and whether somebody watches them."""

    stdout: TextIO = dataclasses.field(default_factory=lambda: sys.stdout)
    stderr: TextIO = dataclasses.field(default_factory=lambda: sys.stderr)

    @property
    def watched(self) -> bool:
        """True where stderr is a terminal on which a line can be redrawn."""
        return self.stderr.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def width(self) -> int | None:
        """Cells of a line of the result; None where nothing limits it, as in a file."""
        return columns(self.stdout)

    @property
    def colour(self) -> bool:
        """Whether the result is shown on a terminal that takes colours."""
        dumb = os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
        return self.stdout.isatty() and not dumb

    def tell(self, text: str) -> None:
        """Lines for people; a reader who has left is no reason to stop."""
        lines = sentences(for_screen(text), columns(self.stderr))
        with contextlib.suppress(BrokenPipeError):
            self._put(self.stderr, "\n".join(lines) + "\n")
            self.stderr.flush()

    def answer(self, text: str) -> None:
        """The result, on stdout; a reader who has had enough ends it quietly."""
        try:
            self._write(text + "\n")
            self.stdout.flush()
        except BrokenPipeError:
            self._hang_up()

    def _write(self, text: str) -> None:
        if self.stdout.isatty():
            self._put(self.stdout, for_screen(text, coloured=True))
        elif (buffer := getattr(self.stdout, "buffer", None)) is None:
            self.stdout.write(clean(text))
        else:  # into a file or a program: UTF-8, whatever the locale says
            self.stdout.flush()
            buffer.write(clean(text).encode("utf-8"))

    def _put(self, stream: TextIO, text: str) -> None:
        """On a screen, or into its log: what its encoding lacks stands escaped."""
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    @contextlib.contextmanager
    def quiet_stdout(self) -> Iterator[None]:
        """What libraries print goes to stderr: stdout belongs to the result."""
        with contextlib.redirect_stdout(self.stderr):
            yield

    def _hang_up(self) -> None:
        # the interpreter flushes stdout once more when it ends, and would complain
        with contextlib.suppress(OSError, io.UnsupportedOperation):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stdout.fileno())
            os.close(null)
