"""What a format is: files it writes, and a way to read them back that knows nothing of the run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from unfreeze.exports.subject import Subject


@dataclass(frozen=True)
class ReadBack:
    """What was written, as its own tool reads it.

    `forward`: normalised images [B, 3, S, S] to outputs [B, C]. `tensors`: by name, None for
    formats that keep a program and not named tensors.
    """

    forward: Callable[[Tensor], Tensor]
    tensors: Mapping[str, Tensor] | None = None


class Target(Protocol):
    """One format."""

    def check(self, subject: Subject) -> None:
        """UsageError, with what can be used instead, where the format has no such network."""

    def write(self, subject: Subject, folder: Path) -> None:
        """Put the files of the format into `folder`."""

    def read(self, subject: Subject, folder: Path) -> ReadBack:
        """What stands in `folder`, through the format's own tool.

        Of `subject` only what the README tells its reader may be used: names, never tensors.
        """

    def snippet(self, subject: Subject) -> list[str]:
        """Python lines that load the model and print its answer to one image."""
