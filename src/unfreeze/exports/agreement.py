"""Whether what was written computes what the run computes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unfreeze.errors import UnfreezeError, WeightsError
from unfreeze.exports.subject import Subject
from unfreeze.exports.target import ReadBack, Target

TOLERANCE = 1e-4  # of the largest output; float32 in another order of sums stays below 1e-5


@dataclass(frozen=True)
class Agreement:
    """`max_difference` between outputs, what was allowed, and the verdict.

    `differing`: names of tensors that are not equal to the run's, bit for bit.
    """

    max_difference: float
    tolerance: float
    differing: tuple[str, ...]

    @property
    def matched(self) -> bool:
        """Outputs within the tolerance (never true of a NaN) and every named tensor equal."""
        return self.max_difference <= self.tolerance and not self.differing


def agreement(target: Target, subject: Subject, folder: Path, inputs: Tensor) -> Agreement:
    """Read `folder` back and compare: all of `inputs` [B, 3, S, S] at once, against 1 and B - 1.

    Two sizes of batch, so that a program that was recorded for one of them shows itself.
    WeightsError where the format's own tool cannot read or run what was written.
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
    except Exception as error:  # each tool has errors of its own
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
