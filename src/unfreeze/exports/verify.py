"""Verifies an export: compares its outputs and tensors with the run's model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unfreeze.errors import UnfreezeError, WeightsError
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.format import ExportFormat, LoadedExport

TOLERANCE = 1e-4  # relative to the largest output; float32 summation order stays below 1e-5


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
    try:
        exported = target.read(subject, folder)
        with torch.inference_mode():
            parts = [part for part in (inputs[:1], inputs[1:]) if len(part)]
            outputs = torch.cat([exported.forward(part).float() for part in parts])
    except (UnfreezeError, MemoryError, OSError):
        raise
    except Exception as error:  # each tool raises its own errors
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{subject.card.arch} was exported, but the exported program does not run: {message}",
            "Use --to safetensors, which supports every network.",
        ) from error
    scale = float(expected.abs().max())
    difference = float("nan")
    if outputs.shape == expected.shape:
        difference = float((outputs - expected).abs().max())
    return ExportVerification(
        difference, TOLERANCE * max(scale, 1e-6), _differing(subject, exported)
    )


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
