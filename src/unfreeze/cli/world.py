"""The world outside as an object, so that tests can call the command line in-process."""

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


@dataclasses.dataclass
class World:
    """Streams, and whether somebody watches them."""

    stdout: TextIO = dataclasses.field(default_factory=lambda: sys.stdout)
    stderr: TextIO = dataclasses.field(default_factory=lambda: sys.stderr)

    @property
    def watched(self) -> bool:
        """True where stderr is a terminal on which a line can be redrawn."""
        return self.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def tell(self, text: str) -> None:
        """One line for people; a reader who has left is no reason to stop."""
        with contextlib.suppress(BrokenPipeError):
            self.stderr.write(text + "\n")
            self.stderr.flush()

    def answer(self, text: str) -> None:
        """The result, on stdout; a reader who has had enough ends it quietly."""
        try:
            self._write(text + "\n")
            self.stdout.flush()
        except BrokenPipeError:
            self._hang_up()

    def _write(self, text: str) -> None:
        try:
            self.stdout.write(text)
        except UnicodeEncodeError:
            # names on a disk need not be UTF-8: their bytes go through unchanged
            self.stdout.flush()
            self.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))

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
