"""The process's standard streams as an object, so that tests can run commands in-process."""

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeVar, cast

from unfreeze.runtime.atomic import is_full
from unfreeze.runtime.text_layout import wrapped_with_command
from unfreeze.text import for_screen, without_surrogates

Result = TypeVar("Result")
NARROWEST, USUAL = 40, 80  # width of a line in cells: minimum, and default if unknown
# ASCII replacements for characters in our output
PLAIN = str.maketrans({"─": "-", "━": "#", "…": "...", "±": "+-", "×": "x", "·": "-"})


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is an open terminal."""
    return not stream.closed and stream.isatty()


def terminal_width(stream: TextIO) -> int | None:
    """Width in cells: `COLUMNS`, else of the terminal; None if the stream is not a terminal."""
    setting = os.environ.get("COLUMNS", "")
    if setting.isdigit() and int(setting):
        return max(NARROWEST, int(setting))
    if not is_terminal(stream):
        return None
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # a terminal without file descriptor or size
        width = 0
    return max(NARROWEST, width) if width else USUAL


def open_standard_streams() -> None:
    """Open missing standard streams as /dev/null.

    Otherwise the next opened file would get their descriptor and receive printed text.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor: this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


class _NullStream(io.TextIOBase):
    """A stream that discards text."""

    def write(self, text: str) -> int:
        """Discard the text."""
        return len(text)


def _or_null(stream: TextIO | None) -> TextIO:
    """The stream, or one that discards text if there is none (services, pythonw)."""
    return cast(TextIO, _NullStream()) if stream is None else stream


def _is_closed(stream: TextIO, error: Exception) -> bool:
    """Whether a write failed because the reader closed the stream."""
    return stream.closed or (isinstance(error, OSError) and not is_full(error))


def _redirect_to_null(stream: TextIO) -> None:
    """Redirect the stream to /dev/null, as flushing it at exit would fail again."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _SafeStream:
    """A stream that ignores write errors after its reader or terminal has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, unless the reader has gone."""
        return self._try(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """Flush, unless the reader has gone."""
        self._try(self._stream.flush, None)

    def isatty(self) -> bool:
        """Whether the stream is an open terminal."""
        return not self._stream.closed and self._stream.isatty()

    def _try(self, work: Callable[[], Result], otherwise: Result) -> Result:
        try:
            return work()
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError) and not _is_closed(self._stream, error):
                raise
            _redirect_to_null(self._stream)
            return otherwise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@dataclasses.dataclass
class Environment:
    """Standard output and error, and their properties."""

    stdout: TextIO = dataclasses.field(default_factory=lambda: _or_null(sys.stdout))
    stderr: TextIO = dataclasses.field(default_factory=lambda: _or_null(sys.stderr))

    def __post_init__(self) -> None:
        self.stderr = cast(TextIO, _SafeStream(self.stderr))

    @property
    def watched(self) -> bool:
        """Whether stderr is a terminal on which lines can be redrawn."""
        return self.stderr.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def width(self) -> int | None:
        """Width of stdout in cells; None if unlimited, as in a file."""
        return terminal_width(self.stdout)

    @property
    def colour(self) -> bool:
        """Whether stdout is a terminal with colours."""
        dumb = os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
        return is_terminal(self.stdout) and not dumb

    def tell(self, text: str) -> None:
        """Print text to stderr; a closed stderr is ignored."""
        lines = wrapped_with_command(for_screen(text), terminal_width(self.stderr))
        self._put(self.stderr, "\n".join(lines) + "\n")
        self.stderr.flush()

    def answer(self, text: str) -> None:
        """Print the result to stdout; a closed pipe is ignored.

        OSError if it is written to a file on a full disk.
        """
        try:
            self._write(text + "\n")
            self.stdout.flush()
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                _redirect_to_null(self.stdout)
            if not _is_closed(self.stdout, error):
                raise

    def _write(self, text: str) -> None:
        if is_terminal(self.stdout):
            self._put(self.stdout, for_screen(text, coloured=True))
        elif (buffer := getattr(self.stdout, "buffer", None)) is None:
            self.stdout.write(without_surrogates(text))
        else:  # a file or pipe: UTF-8 in any locale
            self.stdout.flush()
            buffer.write(without_surrogates(text).encode("utf-8"))

    def _put(self, stream: TextIO, text: str) -> None:
        """Write text, with characters missing in the stream's encoding escaped."""
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            text = text.translate(PLAIN)
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    @contextlib.contextmanager
    def quiet_stdout(self) -> Iterator[None]:
        """Within the block stdout is redirected to stderr: only the result goes to stdout."""
        with contextlib.redirect_stdout(self.stderr):
            yield
