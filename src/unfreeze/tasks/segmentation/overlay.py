"""Draws class ids as colours: indexed mask files, and overlays over images."""

import io

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from unfreeze.tasks.segmentation.masks import IGNORED, ClassIds, MaskClasses

Pixels = npt.NDArray[np.uint8]
OPACITY = 0.5


def class_colours(classes: MaskClasses) -> npt.NDArray[np.uint8]:
    """Colour [C, 3] of each class."""
    palette = np.array(classes.palette(), np.uint8).reshape(256, 3)
    ids = np.arange(len(classes.names), dtype=np.uint8)
    colours: Pixels = palette[classes.to_values(ids)]
    return colours


def colour_names(classes: MaskClasses) -> dict[str, str]:
    """`#rrggbb` of each class."""
    colours = class_colours(classes).tolist()
    return {
        name: "#" + "".join(f"{part:02x}" for part in colour)
        for name, colour in zip(classes.names, colours, strict=True)
    }


def mask_png(ids: ClassIds, classes: MaskClasses) -> bytes:
    """An indexed PNG with the pixel values of the training masks, and a palette to look at it."""
    image = Image.fromarray(classes.to_values(ids), "P")
    image.putpalette(classes.palette())
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def overlay(image: Pixels, ids: ClassIds, classes: MaskClasses) -> Pixels:
    """The image [H, W, 3] with the colours of its classes over it; ignored pixels stay as they are.

    Borders between classes are drawn in full colour.
    """
    colours = class_colours(classes)
    known = ids != IGNORED
    colour = colours[np.where(known, ids, 0)]
    mixed = cv2.addWeighted(image, 1 - OPACITY, colour, OPACITY, 0)
    inner = cv2.erode(ids, np.ones((3, 3), np.uint8))
    border = known & (inner != ids)
    mixed = np.where(border[..., None], colour, mixed)
    return np.where(known[..., None], mixed, image).astype(np.uint8)


def class_shares(ids: ClassIds, classes: MaskClasses) -> dict[str, float]:
    """Share of the pixels of each class, without ignored pixels."""
    counts = np.bincount(ids[ids != IGNORED].ravel(), minlength=len(classes.names))
    return {
        name: float(count / max(1, counts.sum()))
        for name, count in zip(classes.names, counts, strict=True)
    }
