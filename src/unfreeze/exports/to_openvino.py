"""OpenVINO export: model.xml and model.bin, made from the ONNX export, verified with OpenVINO."""

import importlib
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from unfreeze.errors import ResourceError, UsageError, WeightsError
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.format import LoadedExport
from unfreeze.exports.to_onnx import FILE as ONNX_FILE
from unfreeze.exports.to_onnx import Onnx
from unfreeze.exports.write import numpy_lines
from unfreeze.runtime.atomic import write_bytes

FILE = "model.xml"
# on CPUs with AMX OpenVINO computes in bfloat16 by default, which changes probabilities
PRECISION = ("INFERENCE_PRECISION_HINT", "f32")


class Openvino:
    """`model.xml` and `model.bin`, float32 weights; inputs and outputs are those of `Onnx`."""

    def check(self, subject: ExportedModel) -> None:
        """UsageError if a required package is not installed, or for models of texts."""
        if subject.texts:
            raise UsageError("--to openvino is for images.", "Use --to onnx.")
        for name in ("onnx", "onnxscript", "openvino"):
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise UsageError(
                    f"--to openvino needs the package {name}.", "pip install 'unfreeze[openvino]'"
                ) from error

    def write(self, subject: ExportedModel, folder: Path) -> None:
        """Convert the ONNX program; WeightsError if either step fails."""
        import openvino

        with tempfile.TemporaryDirectory(prefix="unfreeze-openvino-") as temporary:
            Onnx().write(subject, Path(temporary))
            try:
                model = openvino.Core().read_model(str(Path(temporary) / ONNX_FILE))
            except RuntimeError as error:
                raise WeightsError(
                    f"OpenVINO cannot read {subject.card.arch}: {str(error).splitlines()[0]}",
                    "Use --to onnx or --to torchscript.",
                ) from error
            made = Path(temporary) / FILE
            try:
                openvino.save_model(model, str(made), compress_to_fp16=False)
            except RuntimeError as error:  # as "iostream error"
                raise ResourceError(
                    f"OpenVINO could not write the model to {temporary}: {error}.",
                    "Free some space there, or set TMPDIR to another folder.",
                ) from error
            for path in (made, made.with_suffix(".bin")):
                write_bytes(folder / path.name, path.read_bytes())

    def read(self, subject: ExportedModel, folder: Path) -> LoadedExport:
        """Load it in OpenVINO, on the CPU in float32."""
        import openvino

        model = openvino.Core().compile_model(str(folder / FILE), "CPU", dict([PRECISION]))

        def forward(images: Tensor) -> Tensor:
            outputs = model(images.contiguous().numpy())
            return torch.from_numpy(outputs[subject.gives].copy())

        return LoadedExport(forward)

    def snippet(self, subject: ExportedModel) -> list[str]:
        """Lines with openvino and numpy, without PyTorch."""
        hint = f'{{"{PRECISION[0]}": "{PRECISION[1]}"}}'
        load = f'model = openvino.Core().compile_model("{FILE}", "CPU", {hint})'
        return [
            "import numpy, openvino",
            load,
            "outputs = lambda x: model(x)[0]",
            *numpy_lines(subject),
        ]
