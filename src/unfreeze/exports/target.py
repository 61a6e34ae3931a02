"""The interface of an export format: write files, and load them with the format's own tool."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from unfreeze.exports.subject import Subject


@dataclass(frozen=True)
class ReadBack:
    """An export as loaded by the format's own tool.

    `forward`: normalised images [B, 3, S, S] to outputs [B, C]; `tensors`: by name, None for
    formats that store a program instead of named tensors.
    """

    forward: Callable[[Tensor], Tensor]
    tensors: Mapping[str, Tensor] | None = None


class Target(Protocol):
    """One export format."""

    def check(self, subject: Subject) -> None:
        """UsageError, with an alternative, if the format does not support the network."""

    def write(self, subject: Subject, folder: Path) -> None:
        """Write the files of the format into `folder`."""

    def read(self, subject: Subject, folder: Path) -> ReadBack:
        """Load the export in `folder` with the format's own tool.

        May use of `subject` only what the README states: names, never tensors.
        """

    def snippet(self, subject: Subject) -> list[str]:
        """Python lines that load the model and print its output for one image."""
