"""Verifies an export: compares its outputs and tensors with the run's model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unfreeze.errors import UnfreezeError, WeightsError
from unfreeze.exports.subject import Subject
from unfreeze.exports.target import ReadBack, Target

TOLERANCE = 1e-4  # relative to the largest output; float32 summation order stays below 1e-5


@dataclass(frozen=True)
class Agreement:
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


def agreement(target: Target, subject: Subject, folder: Path, inputs: Tensor) -> Agreement:
    """Load the export in `folder` and compare its outputs on `inputs` [B, 3, S, S].

    The export runs batches of 1 and B - 1, to detect programs traced for one batch size.
    WeightsError if the format's own tool cannot load or run it.
    """
    with torch.inference_mode():
        wanted = subject.network(inputs).float()
    try:
        back = target.read(subject, folder)
        with torch.inference_mode():
            parts = [part for part in (inputs[:1], inputs[1:]) if len(part)]
            found = torch.cat([back.forward(part).float() for part in parts])
    except (UnfreezeError, MemoryError, OSError):
        raise
    except Exception as error:  # each tool raises its own errors
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{subject.card.arch} was exported, but the exported program does not run: {said}",
            "Use --to safetensors, which supports every network.",
        ) from error
    scale = float(wanted.abs().max())
    difference = float("nan")
    if found.shape == wanted.shape:
        difference = float((found - wanted).abs().max())
    return Agreement(difference, TOLERANCE * max(scale, 1e-6), _differing(subject, back))


def _differing(subject: Subject, back: ReadBack) -> tuple[str, ...]:
    if back.tensors is None:
        return ()
    ours, theirs = subject.tensors(), back.tensors
    return tuple(
        name
        for name in sorted({*ours, *theirs})
        if name not in ours
        or name not in theirs
        or ours[name].dtype != theirs[name].dtype
        or not torch.equal(ours[name], theirs[name])
    )
