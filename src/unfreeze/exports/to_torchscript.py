"""TorchScript export: network and weights in one file, also for libtorch."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from unfreeze.errors import UsageError
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.format import LoadedExport
from unfreeze.exports.with_preprocessing import with_preprocessing
from unfreeze.exports.write import PILLOW_LINE, UPRIGHT_LINE, result_lines, torch_lines
from unfreeze.runtime.atomic import write_bytes
from unfreeze.runtime.utf8_path import utf8_path

FILE = "model.ts"


class Torchscript:
    """`model.ts`, traced from one forward pass, for any batch size.

    With preprocessing: for one image of any size.
    """

    def check(self, subject: ExportedModel) -> None:
        """UsageError for texts; otherwise tracing itself shows whether it is possible."""
        if subject.texts:
            raise UsageError(
                "Text encoders cannot be traced for texts of any length.", "Use --to onnx."
            )

    def write(self, subject: ExportedModel, folder: Path) -> None:
        """Trace with a batch of two, so that a batch size of 1 is not treated as constant."""
        buffer = io.BytesIO()
        with _ignore_warnings(), torch.inference_mode(False), torch.no_grad():
            program = torch.jit.trace(  # type: ignore[no-untyped-call]
                subject.recorded(), subject.example()
            )
            if subject.with_preprocessing:  # its steps depend on the image's size: compiled
                whole = with_preprocessing(subject, program)
                program = torch.jit.script(whole)
            torch.jit.save(program, buffer)
        write_bytes(folder / FILE, buffer.getvalue())

    def read(self, subject: ExportedModel, folder: Path) -> LoadedExport:
        """Load it with `torch.jit.load`."""
        with _ignore_warnings(), utf8_path(folder / FILE) as path:
            program = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        return LoadedExport(program)

    def snippet(self, subject: ExportedModel) -> list[str]:
        """Lines with `torch.jit.load`."""
        load = f'model = torch.jit.load("{FILE}")'
        if subject.with_preprocessing:
            return [
                "import numpy, torch",
                PILLOW_LINE,
                load,
                UPRIGHT_LINE,
                "with torch.inference_mode():",
                f"    {subject.gives} = model(torch.from_numpy(numpy.array(image))).numpy()",
                *result_lines(subject),
            ]
        return ["import torch", load, *torch_lines(subject)]


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # PyTorch recommends torch.export, which libtorch cannot load
        warnings.filterwarnings("ignore", r".*torch\.jit\..* is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r".*torch\.jit\..*", DeprecationWarning)
        # shape checks inside networks are traced as passed; other image sizes are not supported
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield
