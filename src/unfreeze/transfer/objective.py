"""Training loss: cross-entropy with label smoothing, class weights, MixUp and CutMix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unfreeze.transfer.fit import Fit


class Objective:
    """Mean cross-entropy over the global batch, in nats.

    With class weights it is the weighted mean sum(w_y * loss) / sum(w_y), as in torch. Gradient
    accumulation and data parallelism do not change the loss: each part is divided by the `total`
    weight of the global batch.
    """

    def __init__(self, fit: Fit, device: torch.device) -> None:
        self.smoothing = fit.label_smoothing
        weights = torch.tensor(fit.class_weights, dtype=torch.float32)
        self.weights: Tensor | None = weights if len(weights) else None  # [C], on the host
        self.on_device = None if self.weights is None else self.weights.to(device)
        self.mix = _mixer(fit)

    def mixed(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(inputs, targets) of the step: labels [B], or soft labels [B, C]."""
        if self.mix is None or len(labels) < 2:
            return inputs, labels
        mixed, targets = self.mix(inputs, labels)
        return mixed, targets

    def total(self, labels: Tensor) -> float:
        """Total weight of images with these labels [B] (on the host).

        MixUp and CutMix do not change it: each image of a batch is used twice.
        """
        return float(len(labels) if self.weights is None else self.weights[labels].sum())

    def loss(self, logits: Tensor, targets: Tensor, total: float) -> Tensor:
        """Loss of logits [B, C], summed and divided by `total`, in at least float32."""
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
    """Loss weight of each class: `balanced` is N / (C * n), as in scikit-learn; `sqrt` its root.

    `sqrt` is scaled so that the mean weight over images is 1, as with `balanced`; `none` is ().
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
    """Torchvision's MixUp, CutMix, or a random choice per batch; None if both are off."""
    if not (fit.mixup or fit.cutmix):
        return None
    from torchvision.transforms import v2

    alphas = ((v2.MixUp, fit.mixup), (v2.CutMix, fit.cutmix))
    mixers = [kind(alpha=float(alpha), num_classes=fit.classes) for kind, alpha in alphas if alpha]
    return mixers[0] if len(mixers) == 1 else v2.RandomChoice(mixers)
