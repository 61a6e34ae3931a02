"""What a step makes smaller: cross-entropy, with smoothed, weighted or mixed labels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unfreeze.transfer.fit import Fit


class Objective:
    """Mean cross-entropy over a batch of all processes, in nats.

    With weights the mean is theirs: sum(w_y * loss) / sum(w_y), as torch's. A batch that comes in
    parts, or shared by processes, has the loss of the whole: each part is divided by its `total`.
    """

    def __init__(self, fit: Fit, device: torch.device) -> None:
        self.smoothing = fit.label_smoothing
        weights = torch.tensor(fit.class_weights, dtype=torch.float32)
        self.weights: Tensor | None = weights if len(weights) else None  # [C], on the host
        self.on_device = None if self.weights is None else self.weights.to(device)
        self.mix = _mixer(fit)

    def mixed(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(inputs, targets) of the step: labels [B], or where they are mixed shares [B, C]."""
        if self.mix is None or len(labels) < 2:
            return inputs, labels
        mixed, targets = self.mix(inputs, labels)
        return mixed, targets

    def total(self, labels: Tensor) -> float:
        """What the images with these labels [B], on the host, count together.

        Mixing pairs the images of a batch, each twice, and leaves it as it is.
        """
        return float(len(labels) if self.weights is None else self.weights[labels].sum())

    def loss(self, logits: Tensor, targets: Tensor, total: float) -> Tensor:
        """The part of the mean that logits [B, C] with `targets` have in a batch of `total`.

        Computed in float32 at least.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weight = None if self.on_device is None else self.on_device.to(logits.dtype)
        summed = functional.cross_entropy(
            logits,
            targets,
            weight=weight,
            label_smoothing=self.smoothing,
            reduction="sum",
        )
        return summed / total


def class_weights(labels: Sequence[int] | Any, classes: int, kind: str) -> tuple[float, ...]:
    """What a image of each class counts: N / (C * n) (`balanced`, as scikit-learn's) or its root.

    `sqrt` is scaled so that a image counts 1 on average, as with `balanced`; `none` is ().
    """
    if kind == "none":
        return ()
    counts = torch.bincount(torch.as_tensor(labels), minlength=classes).double()
    weights = counts.sum() / (classes * counts)
    if kind == "sqrt":
        weights = weights.sqrt()
        weights *= counts.sum() / (weights * counts).sum()
    return tuple(weights.tolist())


def _mixer(fit: Fit) -> Any:
    """Torchvision's MixUp, CutMix or a choice of them for each batch; None where none is asked."""
    if not (fit.mixup or fit.cutmix):
        return None
    from torchvision.transforms import v2

    asked = ((v2.MixUp, fit.mixup), (v2.CutMix, fit.cutmix))
    found = [kind(alpha=float(alpha), num_classes=fit.classes) for kind, alpha in asked if alpha]
    return found[0] if len(found) == 1 else v2.RandomChoice(found)
