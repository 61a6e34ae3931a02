"""ONNX export, verified with ONNX Runtime."""

import importlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfreeze import __version__
from unfreeze.errors import UsageError, WeightsError
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.format import LoadedExport
from unfreeze.exports.write import numpy_lines
from unfreeze.runtime.utf8_path import utf8_path

FILE, INPUT = "model.onnx", "images"
NEEDS = ("onnx", "onnxscript", "onnxruntime")


class Onnx:
    """`model.onnx` with the input `images` and the output `scores`, `features` or `maps`."""

    def check(self, subject: ExportedModel) -> None:
        """UsageError if a required package is not installed."""
        for name in NEEDS:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise UsageError(
                    f"--to onnx needs the package {name}.", "pip install 'unfreeze[onnx]'"
                ) from error

    def write(self, subject: ExportedModel, folder: Path) -> None:
        """Export with torch.export and a dynamic batch size; WeightsError if that fails."""
        network = subject.recorded()
        try:
            with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")  # internal warnings of the exporter
                program: Any = torch.onnx.export(
                    network,
                    (subject.example(),),
                    dynamo=True,
                    input_names=[INPUT],
                    output_names=[subject.gives],
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            raise WeightsError(
                f"PyTorch cannot export {subject.card.arch} to ONNX: {_first_line(error)}",
                "Use --to torchscript or --to safetensors.",
            ) from error
        program.model.metadata_props.update(_metadata(subject))
        program.save(str(folder / FILE))

    def read(self, subject: ExportedModel, folder: Path) -> LoadedExport:
        """Load it in ONNX Runtime, on the CPU."""
        import onnxruntime

        with utf8_path(folder / FILE) as path:
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def forward(images: Tensor) -> Tensor:
            inputs = {INPUT: images.contiguous().numpy()}
            return torch.from_numpy(session.run([subject.gives], inputs)[0])

        return LoadedExport(forward)

    def snippet(self, subject: ExportedModel) -> list[str]:
        """Lines with onnxruntime and numpy, without PyTorch."""
        return [
            "import numpy, onnxruntime",
            f'session = onnxruntime.InferenceSession("{FILE}")',
            f'outputs = lambda x: session.run(None, {{"{INPUT}": x}})[0]',
            *numpy_lines(subject),
        ]


def _metadata(subject: ExportedModel) -> dict[str, str]:
    """Metadata inside the ONNX file: strings, with lists and objects as JSON."""
    card = subject.card
    return {
        "classes": json.dumps(list(card.classes), ensure_ascii=False),
        "preprocess": json.dumps(subject.preprocess.as_dict()),
        "temperature": json.dumps(card.temperature),
        "arch": card.arch,
        "gives": subject.gives,
        "unfreeze": __version__,
        "licence": card.provenance.get("licence") or "",
    }


def _first_line(error: Exception) -> str:
    logging.getLogger(__name__).debug("%s", error)
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
