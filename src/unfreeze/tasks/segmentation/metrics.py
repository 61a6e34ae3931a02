"""Metrics of segmentation from one confusion matrix over all pixels of a data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from unfreeze.tasks.segmentation.masks import IGNORED, ClassIds

Counts = npt.NDArray[np.int64]


def pixel_confusion(predicted: ClassIds, truth: ClassIds, classes: int) -> Counts:
    """Confusion matrix [C, C] of pixels: true classes in rows; ignored pixels are left out."""
    known = truth != IGNORED
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def at_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits [C, h, w] at another size [C, H, W], bilinear: resized before the maximum is taken."""
    if logits.shape[1:] == size:
        return logits
    return functional.interpolate(
        logits[None].float(), size=size, mode="bilinear", align_corners=False
    )[0]


def predicted_ids(logits: Tensor, size: tuple[int, int]) -> ClassIds:
    """Class ids uint8 [H, W] of logits [C, h, w] at an image's own size."""
    return at_size(logits, size).argmax(dim=0).to(torch.uint8).cpu().numpy()


def iou_of_classes(table: Counts) -> list[float | None]:
    """Intersection over union of each class; None for one in neither truth nor prediction."""
    hits = table.diagonal()
    union = table.sum(axis=1) + table.sum(axis=0) - hits
    return [float(hit / total) if total else None for hit, total in zip(hits, union, strict=True)]


def dice_of_classes(table: Counts) -> list[float | None]:
    """Dice coefficient (F1) of each class; None for one in neither truth nor prediction."""
    hits = table.diagonal()
    total = table.sum(axis=1) + table.sum(axis=0)
    return [float(2 * hit / n) if n else None for hit, n in zip(hits, total, strict=True)]


def pixel_metrics(table: Counts) -> dict[str, float]:
    """`miou`, `dice` (means over the classes that occur) and `pixel_accuracy`; NaN without pixels.

    Every class counts, a background as well.
    """
    total = table.sum()
    return {
        "miou": _mean(iou_of_classes(table)),
        "dice": _mean(dice_of_classes(table)),
        "pixel_accuracy": float(table.trace() / total) if total else float("nan"),
    }


def segmentation_details(table: Counts, classes: Sequence[str]) -> dict[str, Any]:
    """IoU and Dice by class, the classes, and the confusion matrix of all pixels."""
    return {
        "iou": dict(zip(classes, iou_of_classes(table), strict=True)),
        "dice_of_classes": dict(zip(classes, dice_of_classes(table), strict=True)),
        "classes": list(classes),
        "confusion": table.tolist(),
    }


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")
