"""Losses of segmentation by name, one value per image, without ignored pixels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unfreeze.errors import UsageError
from unfreeze.models.segmentation import segmentation_library
from unfreeze.tasks.segmentation.masks import IGNORED

PixelLoss = Callable[[Tensor, Tensor], Tensor]
PARTS = ("ce", "dice", "focal", "jaccard", "lovasz", "tversky")
DEFAULT = "ce+dice"


def loss_of_images(name: str, weights: Tensor | None = None) -> PixelLoss:
    """A loss [B] of logits [B, C, H, W] and class ids [B, H, W] by `--loss NAME`.

    NAME is a part or a sum of parts, as `ce+dice`. Each image's loss depends on that image alone,
    so that a batch may be split over processes or accumulation steps. An image of ignored pixels
    alone has the loss 0. `weights` [C]: class weights of the cross-entropy.
    """
    names = name.split("+")
    unknown = [part for part in names if part not in PARTS]
    if unknown or len(set(names)) < len(names):
        raise UsageError(
            f"Invalid value for --loss: {name!r}.",
            f"Use {', '.join(PARTS)} or a sum of them, such as {DEFAULT}.",
        )
    parts = [_cross_entropy(weights) if part == "ce" else _each_image(part) for part in names]
    return lambda logits, targets: torch.stack([part(logits, targets) for part in parts]).sum(0)


def _cross_entropy(weights: Tensor | None) -> PixelLoss:
    """The mean over an image's pixels, weighted by class."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        weight = None if weights is None else weights.to(logits)
        known = targets != IGNORED
        pixels = functional.cross_entropy(
            logits, targets, weight=weight, ignore_index=IGNORED, reduction="none"
        )
        if weight is None:
            total = known.sum(dim=(1, 2)).to(logits)
        else:
            total = (weight[targets.where(known, 0)] * known).sum(dim=(1, 2))
        return pixels.sum(dim=(1, 2)) / total.clamp_min(1e-12)

    return loss


def _each_image(part: str) -> PixelLoss:
    """A loss of segmentation_models_pytorch, image by image: it takes the mean over a batch."""
    losses = segmentation_library().losses
    kinds: dict[str, Any] = {
        "dice": losses.DiceLoss,
        "focal": losses.FocalLoss,
        "jaccard": losses.JaccardLoss,
        "lovasz": losses.LovaszLoss,
        "tversky": losses.TverskyLoss,
    }
    single = kinds[part]("multiclass", ignore_index=IGNORED)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        values = [
            single(scores[None], target[None])
            if bool((target != IGNORED).any())
            else scores.sum() * 0
            for scores, target in zip(logits, targets, strict=True)
        ]
        return torch.stack(values)

    return loss
