"""The errors a user can meet: a sentence, a next step, an exit code.

UnfreezeError            1   a bug of ours, or the base of all
├── UsageError           2   wrong use or settings
├── DataError            3   images, labels, archives
├── WeightsError         4   weights or checkpoints
├── DivergedError        5   training became non-finite or collapsed
├── ResourceError        6   memory or disk; the last good state is whole
└── Interrupted        130   stopped from outside; resumable
"""

import shlex
from collections.abc import Sequence
from pathlib import Path


class UnfreezeError(Exception):
    """Base of every error with a message for people: `sentence`, `next_step`, `exit_code`."""

    exit_code = 1
    spoken: bool | None = None  # of many processes: True, another says it; False, this one does

    def __init__(self, sentence: str, next_step: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.next_step = next_step

    def __str__(self) -> str:
        """The sentence and, where there is one, the next step on a line of its own."""
        return f"{self.sentence}\n{self.next_step}" if self.next_step else self.sentence


class UsageError(UnfreezeError):
    """Wrong use or settings."""

    exit_code = 2


class DataError(UnfreezeError):
    """Images, labels or archives that cannot serve."""

    exit_code = 3


class WeightsError(UnfreezeError):
    """Weights or a checkpoint that cannot serve."""

    exit_code = 4


class DivergedError(UnfreezeError):
    """Training became non-finite or collapsed."""

    exit_code = 5


class ResourceError(UnfreezeError):
    """Memory or disk ran out; what was saved before is whole."""

    exit_code = 6


class Interrupted(UnfreezeError):
    """Stopped from outside; the run can be resumed."""

    exit_code = 130


def rebuilt(exit_code: int, sentence: str, next_step: str) -> UnfreezeError:
    """The error that another process met, from what travels: it says it itself."""
    kinds = (UsageError, DataError, WeightsError, DivergedError, ResourceError, Interrupted)
    kind = next((k for k in kinds if k.exit_code == exit_code), UnfreezeError)
    error = kind(sentence, next_step)
    error.spoken = True
    return error


def go_on(verb: str, data: str | Sequence[str], run: Path) -> str:
    """The next step after an interruption: a command that can be pasted as it stands."""
    words = shlex.join([data] if isinstance(data, str) else data)
    return f"Resume with: unfreeze {verb} {words} --out {shlex.quote(str(run))} --resume"
