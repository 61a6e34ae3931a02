"""Example images of a segmentation: image, label and prediction of the worst and best images."""

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from unfreeze.data.images.preprocess import Pixels
from unfreeze.reports.examples import (
    BEST_MAPS,
    MEDIAN_MAPS,
    QUALITY,
    WORST_MAPS,
    Example,
    save_examples,
)
from unfreeze.reports.examples import FILE as EXAMPLES
from unfreeze.runtime.console import printable
from unfreeze.tasks.segmentation.masks import ClassIds
from unfreeze.tasks.segmentation.metrics import predicted_ids
from unfreeze.tasks.segmentation.overlay import overlay
from unfreeze.tasks.segmentation.task import SegmentationTask
from unfreeze.transfer.predictor import InferenceNetwork, Read

COUNTS = {WORST_MAPS: 6, MEDIAN_MAPS: 3, BEST_MAPS: 3}
WIDTH = 320  # pixels of each of the three images


def write_mask_examples(
    folder: Path,
    network: InferenceNetwork,
    task: SegmentationTask,
    paths: Sequence[str],
    reads: Sequence[Read],
    rows: Sequence[int],
    miou: Sequence[float],
) -> None:
    """Write the example images of the report; `rows`: of the masks; `miou`: of each image."""

    def example(kind: str, position: int) -> Example:
        image, truth = reads[position](), task.mask(rows[position])
        (logits,) = network.outputs([partial(_same, image)], batch_size=1)
        ids = predicted_ids(logits[0], (image.shape[0], image.shape[1]))
        return Example(
            kind=kind,
            path=printable(paths[position]),
            label="mIoU",
            predicted="mIoU",
            probability=float(miou[position]),
            image=side_by_side(image, truth, ids, task),
        )

    save_examples(folder / EXAMPLES, [example(*chosen) for chosen in selected(miou)])


def _same(image: Pixels) -> Pixels:
    return image


def selected(miou: Sequence[float]) -> list[tuple[str, int]]:
    """(kind, position) of the images to show: the worst, around the median, and the best."""
    values = np.array(miou, np.float64)
    order = [int(p) for p in np.argsort(values, kind="stable") if np.isfinite(values[p])]
    worst = order[: COUNTS[WORST_MAPS]]
    best = [p for p in order[::-1] if p not in worst][: COUNTS[BEST_MAPS]]
    middle = max(0, len(order) // 2 - COUNTS[MEDIAN_MAPS] // 2)
    median = [p for p in order[middle:] if p not in (*worst, *best)][: COUNTS[MEDIAN_MAPS]]
    kinds = ((WORST_MAPS, worst), (MEDIAN_MAPS, median), (BEST_MAPS, best))
    return [(kind, position) for kind, positions in kinds for position in positions]


def side_by_side(image: Pixels, truth: ClassIds, ids: ClassIds, task: SegmentationTask) -> bytes:
    """A JPEG of the image, the image with its label, and with the prediction."""
    if task.table is None:
        raise RuntimeError("fit() was not called")
    drawn = [image, overlay(image, truth, task.table), overlay(image, ids, task.table)]
    height, width = image.shape[:2]
    size = (WIDTH, max(1, round(height * WIDTH / width)))
    row = Image.new("RGB", (3 * WIDTH + 16, size[1]), "white")
    for number, pixels in enumerate(drawn):
        row.paste(Image.fromarray(pixels).resize(size), (number * (WIDTH + 8), 0))
    buffer = io.BytesIO()
    row.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
