"""TorchScript: network and weights in one file, for libtorch and whoever has no Python code."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from unfreeze.exports.preparing import torch_lines
from unfreeze.exports.subject import Subject
from unfreeze.exports.target import ReadBack
from unfreeze.runtime.atomic import write_bytes

FILE = "model.ts"


class Torchscript:
    """`model.ts`, recorded from one forward pass; any size of batch."""

    def check(self, subject: Subject) -> None:
        """Whether a network can be recorded shows when it is."""

    def write(self, subject: Subject, folder: Path) -> None:
        """Recorded on a batch of two, so that no layer takes the batch for a constant one."""
        side, held = subject.preprocess.image_size, io.BytesIO()
        with _deprecated(), torch.inference_mode(False), torch.no_grad():
            program = torch.jit.trace(  # type: ignore[no-untyped-call]
                subject.recorded(), torch.zeros(2, 3, side, side)
            )
            torch.jit.save(program, held)
        write_bytes(folder / FILE, held.getvalue())

    def read(self, subject: Subject, folder: Path) -> ReadBack:
        """The program, through `torch.jit.load`."""
        with _deprecated():
            program = torch.jit.load(  # type: ignore[no-untyped-call]
                str(folder / FILE), map_location="cpu"
            )
        return ReadBack(program)

    def snippet(self, subject: Subject) -> list[str]:
        """Through `torch.jit.load`."""
        return [
            "import torch",
            f'model = torch.jit.load("{FILE}")',
            *torch_lines(subject),
        ]


@contextmanager
def _deprecated() -> Iterator[None]:
    with warnings.catch_warnings():
        # PyTorch points to torch.export, which libtorch without Python does not read
        warnings.filterwarnings("ignore", r".*torch\.jit\..* is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r".*torch\.jit\..*", DeprecationWarning)
        # shape checks inside networks are recorded as passed; other sizes are not promised
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield
