"""Errors for the user: each has a sentence, a next step and an exit code.

UnfreezeError            1   internal error (a bug), and the base class
├── UsageError           2   wrong use or settings
├── DataError            3   images, labels, archives
├── WeightsError         4   weights or checkpoints
├── DivergedError        5   training became non-finite or collapsed
├── ResourceError        6   out of memory or disk space; the last checkpoint is intact
└── Interrupted        130   stopped by a signal or time limit; the run can be resumed
"""

import shlex
import traceback
from collections.abc import Sequence
from pathlib import Path


class UnfreezeError(Exception):
    """Base class of all errors for the user: `sentence`, `next_step`, `exit_code`."""

    exit_code = 1
    # with several processes: True: another one prints it; False: this one does; None: by its type
    spoken: bool | None = None

    def __init__(self, sentence: str, next_step: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.next_step = next_step

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks show: the message; a traceback only for internal errors."""
        if type(self) is UnfreezeError:
            return [line.rstrip("\n") for line in traceback.format_exception(self)]
        return [f"{type(self).__name__}: {self}"]

    def __str__(self) -> str:
        """The sentence and, if there is one, the next step on a second line."""
        return f"{self.sentence}\n{self.next_step}" if self.next_step else self.sentence


class UsageError(UnfreezeError):
    """Wrong use or settings."""

    exit_code = 2


class DataError(UnfreezeError):
    """Images, labels or archives that cannot be used."""

    exit_code = 3


class WeightsError(UnfreezeError):
    """Weights or a checkpoint that cannot be used."""

    exit_code = 4


class DivergedError(UnfreezeError):
    """Training became non-finite or collapsed."""

    exit_code = 5


class ResourceError(UnfreezeError):
    """Out of memory or disk space; the last checkpoint is intact."""

    exit_code = 6


class Interrupted(UnfreezeError):
    """Stopped by a signal or the time limit; the run can be resumed."""

    exit_code = 130


def error_from_exit_code(exit_code: int, sentence: str, next_step: str) -> UnfreezeError:
    """The error of another process, from its serialized fields; that process prints it."""
    kinds = (UsageError, DataError, WeightsError, DivergedError, ResourceError, Interrupted)
    kind = next((k for k in kinds if k.exit_code == exit_code), UnfreezeError)
    error = kind(sentence, next_step)
    error.spoken = True
    return error


def resume_command(verb: str, data: str | Sequence[str], run: Path) -> str:
    """The next step after an interruption: a command to copy and paste."""
    words = shlex.join([data] if isinstance(data, str) else data)
    return f"Resume with: unfreeze {verb} {words} --out {shlex.quote(str(run))} --resume"
