"""Static int8 quantisation of an exported ONNX file, by ONNX Runtime."""

import ast
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.data.images.preprocess import Pixels
from unfreeze.errors import UsageError, WeightsError
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.to_onnx import FILE, IMAGE_INPUT, INPUT
from unfreeze.runtime.atomic import write_bytes

INT8 = "model-int8.onnx"
_SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of a node: the modules that it is in


def check_int8(subject: ExportedModel, to: str) -> None:
    """UsageError for models whose accuracy in int8 could not be compared."""
    if to != "onnx":
        raise UsageError("--int8 is for ONNX Runtime.", "Use --to onnx, or omit --int8.")
    one_label = subject.gives in ("scores", "probabilities") and subject.thresholds is None
    if subject.texts or not one_label:
        raise UsageError("--int8 is for classifiers of images.", "Omit --int8.")


def quantize(subject: ExportedModel, folder: Path, images: Iterable[Pixels]) -> None:
    """Write `model-int8.onnx` beside the float file in `folder`.

    Weights are int8 by channel, activations uint8; their ranges are the smallest and largest values
    on the calibration `images`, uint8 [H, W, 3]. Preprocessing and softmax stay as they are.
    WeightsError if ONNX Runtime cannot quantise the network.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="unfreeze-int8-") as temporary:
        start, simplified, result = (Path(temporary) / name for name in ("a", "b", "c"))
        start.write_bytes((folder / FILE).read_bytes())
        try:
            quant_pre_process(str(start), str(simplified), skip_symbolic_shape=True)
            kept = (
                _outside_network(onnx.load(str(simplified))) if subject.with_preprocessing else []
            )
            quantization.quantize_static(
                str(simplified),
                str(result),
                _calibration_reader(onnx_inputs(subject, image) for image in images),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=kept,
            )
        except (MemoryError, OSError):
            raise
        except Exception as error:  # of many kinds, by network
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(
                f"ONNX Runtime cannot quantise {subject.card.arch}: {reason}", "Omit --int8."
            ) from error
        write_bytes(folder / INT8, result.read_bytes())


def onnx_inputs(subject: ExportedModel, image: Pixels) -> dict[str, Any]:
    """The inputs of the ONNX file for an image uint8 [H, W, 3]."""
    if subject.with_preprocessing:
        return {IMAGE_INPUT: np.ascontiguousarray(image)}
    return {INPUT: subject.preprocess.apply(image)[None].contiguous().numpy()}


def _outside_network(model: Any) -> list[str]:
    """Names of the nodes of a program with preprocessing that are not the network's."""
    names = []
    for node in _nodes(model.graph):
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        if "network" not in ast.literal_eval(metadata.get(_SCOPES, "[]")):
            names.append(node.name)
    return names


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes of a graph, and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _calibration_reader(inputs: Iterator[dict[str, Any]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Gives one image after the other, then None."""

        def get_next(self) -> dict[str, Any] | None:
            """The next inputs."""
            return next(inputs, None)

    return Reader()
