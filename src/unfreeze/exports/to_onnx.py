"""ONNX export, verified with ONNX Runtime."""

import importlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfreeze import __version__
from unfreeze.checkpoints.model_file import licence_text
from unfreeze.data.texts.preprocess import TOKENIZER, TextPreprocess
from unfreeze.errors import UsageError, WeightsError
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.format import LoadedExport
from unfreeze.exports.with_preprocessing import EXAMPLE, with_preprocessing
from unfreeze.exports.write import (
    PILLOW_LINE,
    UPRIGHT_LINE,
    numpy_lines,
    probability_lines,
    result_lines,
)
from unfreeze.models.text import TEXT_INPUTS, TextClassifier, TextInputs, text_inputs
from unfreeze.runtime.utf8_path import utf8_path

FILE, INPUT, IMAGE_INPUT = "model.onnx", "images", "image"
NEEDS = ("onnx", "onnxscript", "onnxruntime")


class Onnx:
    """`model.onnx` with the input `images` and the output `scores`, `features` or `maps`.

    With preprocessing: the input `image` and the output `probabilities` or `features`.
    Of texts: the inputs `input_ids`, `attention_mask` and, of encoders that have it,
    `token_type_ids`, with tokenizer.json beside it.
    """

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
        network, example, names, shapes = _program(subject)
        try:
            with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")  # internal warnings of the exporter
                program: Any = torch.onnx.export(
                    network,
                    example,
                    dynamo=True,
                    input_names=names,
                    output_names=[subject.gives],
                    dynamic_shapes=shapes,
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            raise WeightsError(
                f"PyTorch cannot export {subject.card.arch} to ONNX: {_first_line(error)}",
                "Use --to torchscript or --to safetensors.",
            ) from error
        for node in program.model.graph.all_nodes():  # paths on this machine are nobody's business
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
        program.model.metadata_props.update(_metadata(subject))
        program.save(str(folder / FILE))
        if isinstance(subject.preprocess, TextPreprocess):
            subject.preprocess.save(folder)

    def read(self, subject: ExportedModel, folder: Path) -> LoadedExport:
        """Load it in ONNX Runtime, on the CPU."""
        import onnxruntime

        with utf8_path(folder / FILE) as path:
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        names = [entry.name for entry in session.get_inputs()]

        def forward(images: Tensor) -> Tensor:
            given = text_inputs(images) if subject.texts else (images,)
            inputs = {
                name: tensor.contiguous().numpy()
                for name, tensor in zip(names, given, strict=False)
            }
            return torch.from_numpy(session.run([subject.gives], inputs)[0])

        return LoadedExport(forward)

    def snippet(self, subject: ExportedModel) -> list[str]:
        """Lines with onnxruntime and numpy, without PyTorch."""
        if subject.texts:
            return _text_lines(subject)
        if subject.with_preprocessing:
            return [
                "import numpy, onnxruntime",
                PILLOW_LINE,
                f'session = onnxruntime.InferenceSession("{FILE}")',
                UPRIGHT_LINE,
                f'inputs = {{"{IMAGE_INPUT}": numpy.asarray(image)}}',
                f"{subject.gives} = session.run(None, inputs)[0]",
                *result_lines(subject),
            ]
        return [
            "import numpy, onnxruntime",
            f'session = onnxruntime.InferenceSession("{FILE}")',
            f'outputs = lambda x: session.run(None, {{"{INPUT}": x}})[0]',
            *numpy_lines(subject),
        ]


Program = tuple[nn.Module, tuple[Tensor, ...], list[str], tuple[dict[int, Any], ...]]


def _program(subject: ExportedModel) -> Program:
    """(network, example inputs, their names, dynamic axes)."""
    if subject.texts:
        return _text_program(subject)
    if subject.with_preprocessing:
        sides = {0: torch.export.Dim("height"), 1: torch.export.Dim("width")}
        return with_preprocessing(subject), (EXAMPLE,), [IMAGE_INPUT], (sides,)
    shapes = ({0: torch.export.Dim("batch")},)
    return subject.recorded(), (subject.example(),), [INPUT], shapes


def _text_program(subject: ExportedModel) -> Program:
    """The same with the inputs that other tools give text encoders."""
    network = subject.network
    if not isinstance(network, TextClassifier):
        raise TypeError(f"{subject.card.arch} is no text network")
    names = list(TEXT_INPUTS) if network.segments else list(TEXT_INPUTS[:2])
    example = text_inputs(network.example_input(2, torch.device("cpu")))[: len(names)]
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    return TextInputs(network).eval(), example, names, tuple({0: batch, 1: length} for _ in names)


def _text_lines(subject: ExportedModel) -> list[str]:
    network = subject.network
    segments = isinstance(network, TextClassifier) and network.segments
    arrays = ("ids", "attention_mask", "type_ids")[: 3 if segments else 2]
    pairs = [f'"{name}": of("{array}")' for name, array in zip(TEXT_INPUTS, arrays, strict=False)]
    return [
        "import numpy, onnxruntime, tokenizers",
        f'session = onnxruntime.InferenceSession("{FILE}")',
        f'tokenizer = tokenizers.Tokenizer.from_file("{TOKENIZER}")',
        'encoded = tokenizer.encode("a text")',
        "of = lambda name: numpy.array([getattr(encoded, name)], numpy.int64)",
        f"scores = session.run(None, {{{', '.join(pairs)}}})[0]",
        *probability_lines(subject),
    ]


def _metadata(subject: ExportedModel) -> dict[str, str]:
    """Metadata inside the ONNX file: strings, with lists and objects as JSON."""
    card = subject.card
    return {
        "classes": json.dumps(list(card.classes), ensure_ascii=False),
        "preprocess": json.dumps(subject.preprocess.as_dict()),
        "temperature": json.dumps(card.temperature),
        **({"thresholds": json.dumps(subject.thresholds)} if subject.thresholds else {}),
        "arch": card.arch,
        "gives": subject.gives,
        "unfreeze": __version__,
        "licence": licence_text(card.terms),
    }


def _first_line(error: Exception) -> str:
    logging.getLogger(__name__).debug("%s", error)
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
