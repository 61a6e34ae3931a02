"""The world outside as an object, so that tests can call the command line in-process."""

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeVar, cast

from unfreeze.runtime.atomic import is_full
from unfreeze.runtime.layout import sentences
from unfreeze.text import clean, for_screen

Result = TypeVar("Result")
NARROWEST, USUAL = 40, 80  # cells of a line: at least, and where a terminal does not say
# what our own tables and sentences have, for screens that lack it
PLAIN = str.maketrans({"─": "-", "━": "#", "…": "...", "±": "+-", "×": "x", "·": "-"})


def is_terminal(stream: TextIO) -> bool:
    """Whether it is a terminal, and open."""
    return not stream.closed and stream.isatty()


def columns(stream: TextIO) -> int | None:
    """`COLUMNS`, else what the terminal says; None for what is no terminal."""
    told = os.environ.get("COLUMNS", "")
    if told.isdigit() and int(told):
        return max(NARROWEST, int(told))
    if not is_terminal(stream):
        return None
    try:
        found = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # it says to be a terminal and has no number, or no size
        found = 0
    return max(NARROWEST, found) if found else USUAL


def open_streams() -> None:
    """Standard streams that the process was started without lead nowhere.

    Else the next file that is opened gets their number, and what a library prints goes into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


class _Nowhere(io.TextIOBase):
    """Takes text and drops it."""

    def write(self, text: str) -> int:
        """Drops it."""
        return len(text)


def _there(stream: TextIO | None) -> TextIO:
    """The stream, or one that leads nowhere where there is none (services, pythonw)."""
    return cast(TextIO, _Nowhere()) if stream is None else stream


def _gone(stream: TextIO, error: Exception) -> bool:
    """Whether a write failed because nobody reads the stream any more."""
    return stream.closed or (isinstance(error, OSError) and not is_full(error))


def _lead_nowhere(stream: TextIO) -> None:
    """The interpreter flushes a stream once more when it ends, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Listeners:
    """A stream for people: if they have left, or its terminal is gone, nothing is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As much as there is somebody to read it."""
        return self._try(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """Likewise."""
        self._try(self._stream.flush, None)

    def isatty(self) -> bool:
        """Whether it is a terminal, and open."""
        return not self._stream.closed and self._stream.isatty()

    def _try(self, work: Callable[[], Result], otherwise: Result) -> Result:
        try:
            return work()
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError) and not _gone(self._stream, error):
                raise
            _lead_nowhere(self._stream)
            return otherwise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@dataclasses.dataclass
class World:
    """Streams, and whether somebody watches them."""

    stdout: TextIO = dataclasses.field(default_factory=lambda: _there(sys.stdout))
    stderr: TextIO = dataclasses.field(default_factory=lambda: _there(sys.stderr))

    def __post_init__(self) -> None:
        self.stderr = cast(TextIO, _Listeners(self.stderr))

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
        return is_terminal(self.stdout) and not dumb

    def tell(self, text: str) -> None:
        """Lines for people; a reader who has left is no reason to stop."""
        lines = sentences(for_screen(text), columns(self.stderr))
        self._put(self.stderr, "\n".join(lines) + "\n")
        self.stderr.flush()

    def answer(self, text: str) -> None:
        """The result, on stdout; a reader who has had enough ends it quietly.

        OSError where it goes into a file for which there is no room.
        """
        try:
            self._write(text + "\n")
            self.stdout.flush()
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                _lead_nowhere(self.stdout)
            if not _gone(self.stdout, error):
                raise

    def _write(self, text: str) -> None:
        if is_terminal(self.stdout):
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
            text = text.translate(PLAIN)
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    @contextlib.contextmanager
    def quiet_stdout(self) -> Iterator[None]:
        """What libraries print goes to stderr: stdout belongs to the result."""
        with contextlib.redirect_stdout(self.stderr):
            yield
