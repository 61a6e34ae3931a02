"""The interface of an export format: write files, and load them with the format's own tool."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from unfreeze.config.commands import FORMATS, HUB
from unfreeze.errors import UsageError
from unfreeze.exports.exported_model import ExportedModel


@dataclass(frozen=True)
class LoadedExport:
    """An export as loaded by the format's own tool.

    `forward`: normalised images [B, 3, S, S] to outputs [B, C]; `tensors`: by name, None for
    formats that store a program instead of named tensors.
    """

    forward: Callable[[Tensor], Tensor]
    tensors: Mapping[str, Tensor] | None = None


class ExportFormat(Protocol):
    """One export format."""

    def check(self, subject: ExportedModel) -> None:
        """UsageError, with an alternative, if the format does not support the network."""

    def write(self, subject: ExportedModel, folder: Path) -> None:
        """Write the files of the format into `folder`."""

    def read(self, subject: ExportedModel, folder: Path) -> LoadedExport:
        """Load the export in `folder` with the format's own tool.

        May use of `subject` only what the README states: names, never tensors.
        """

    def snippet(self, subject: ExportedModel) -> list[str]:
        """Python lines that load the model and print its output for one image."""


def export_format(name: str | None, repo: str = "") -> ExportFormat:
    """The format of `--to`, imported on demand; UsageError for None.

    `repo`: of the Hub, which the README names.
    """
    if name is None:
        raise UsageError("export needs a format.", f"Add --to with one of: {', '.join(FORMATS)}.")
    module = importlib.import_module(f"unfreeze.exports.to_{name}")
    made = getattr(module, name.capitalize())
    instance: ExportFormat = made(repo) if name == HUB else made()
    return instance
