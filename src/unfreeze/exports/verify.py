"""Verifies an export: compares its outputs and tensors with the run's model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unfreeze.data.images.preprocess import Pixels
from unfreeze.errors import UnfreezeError, WeightsError
from unfreeze.evaluation.calibration import apply_temperature
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.format import ExportFormat, LoadedExport

# relative to the largest output, absolute for probabilities; float32 summation order stays below
# 1e-5
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExportVerification:
    """The result of a verification.

    `max_difference`: largest absolute difference of outputs; `tolerance`: the allowed one;
    `differing`: names of tensors that are not bit-equal to the run's.
    """

    max_difference: float
    tolerance: float
    differing: tuple[str, ...]

    @property
    def matched(self) -> bool:
        """Whether outputs are within the tolerance (NaN never is) and all tensors are equal."""
        return self.max_difference <= self.tolerance and not self.differing


def verify_export(
    target: ExportFormat, subject: ExportedModel, folder: Path, inputs: Tensor
) -> ExportVerification:
    """Load the export in `folder` and compare its outputs on `inputs` [B, 3, S, S].

    The export runs batches of 1 and B - 1, to detect programs traced for one batch size.
    WeightsError if the format's own tool cannot load or run it.
    """
    with torch.inference_mode():
        expected = subject.network(inputs).float()
    parts = [part for part in (inputs[:1], inputs[1:]) if len(part)]
    exported, outputs = _run(target, subject, folder, parts)
    return _compared(expected, torch.cat(outputs), subject, exported)


def verify_on_images(
    target: ExportFormat, subject: ExportedModel, folder: Path, images: Sequence[Pixels]
) -> ExportVerification:
    """The same of an export with preprocessing, on uint8 images [H, W, 3] of any sizes.

    They are compared with what `predict` computes: Pillow's resize, the network, its temperature.
    """
    p = subject.preprocess
    with torch.inference_mode():
        batches = [p.model_input(p.collate([p.pixels(image)])) for image in images]
        expected = torch.cat([subject.network(batch).float() for batch in batches])
    if subject.thresholds is not None:
        expected = expected.sigmoid()
    elif subject.gives == "probabilities":
        expected = apply_temperature(expected, subject.card.temperature).softmax(dim=1)
    inputs = [torch.from_numpy(np.array(image)) for image in images]
    exported, outputs = _run(target, subject, folder, inputs)
    same = all(output.shape == expected.shape[1:] for output in outputs)
    return _compared(expected, torch.stack(outputs) if same else torch.zeros(0), subject, exported)


def _run(
    target: ExportFormat, subject: ExportedModel, folder: Path, inputs: Sequence[Tensor]
) -> tuple[LoadedExport, list[Tensor]]:
    """The export in `folder` as its own tool loads it, and its output for each of `inputs`."""
    try:
        exported = target.read(subject, folder)
        with torch.inference_mode():
            return exported, [exported.forward(part).float() for part in inputs]
    except (UnfreezeError, MemoryError, OSError):
        raise
    except Exception as error:  # each tool raises its own errors
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{subject.card.arch} was exported, but the exported program does not run: {message}",
            "Use --to safetensors, which supports every network.",
        ) from error


def _compared(
    expected: Tensor, outputs: Tensor, subject: ExportedModel, exported: LoadedExport
) -> ExportVerification:
    tolerance = TOLERANCE * max(float(expected.abs().max()), 1e-6)
    if subject.gives == "probabilities":
        tolerance = TOLERANCE
    difference = float("nan")
    if outputs.shape == expected.shape:
        difference = float((outputs - expected).abs().max())
    return ExportVerification(difference, tolerance, _differing(subject, exported))


def _differing(subject: ExportedModel, exported: LoadedExport) -> tuple[str, ...]:
    if exported.tensors is None:
        return ()
    run_tensors, exported_tensors = subject.tensors(), exported.tensors
    return tuple(
        name
        for name in sorted({*run_tensors, *exported_tensors})
        if name not in run_tensors
        or name not in exported_tensors
        or run_tensors[name].dtype != exported_tensors[name].dtype
        or not torch.equal(run_tensors[name], exported_tensors[name])
    )
