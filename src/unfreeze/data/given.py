"""Images as Python programs hold them: files, encoded bytes, Pillow's images, arrays."""

import os
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unfreeze.data.decode import decode, decode_opened
from unfreeze.data.deep import How, shown
from unfreeze.data.intensity import parsed
from unfreeze.data.signatures import HEAD, known
from unfreeze.errors import UsageError

TAKEN = "paths, Pillow images, uint8 arrays [H, W, 3], and encoded bytes"
_CHANNELS = (1, 3, 4)  # grey, colour, colour with alpha

Pixels = npt.NDArray[np.uint8]


def image_list(images: Any) -> list[Any]:
    """Each of the images that were given: one of them, or anything to go through.

    UsageError for what is no image, by its place, and where there are none.
    """
    if _is_one(images):
        items = [images]
    elif _many(images):
        items = list(images)
    else:
        raise UsageError(f"A {type(images).__name__} is not an image.", f"Give {TAKEN}.")
    for place, item in enumerate(items):
        _check(place, item)
    if not items:
        raise UsageError("No images to predict.", f"Give {TAKEN}.")
    return items


def is_path(item: Any) -> bool:
    """Whether the image is a file by its name, and not the image itself."""
    named = isinstance(item, str | os.PathLike)
    return named or (isinstance(item, bytes) and known(item[:HEAD]) is None)


def pixels_of(item: Any, intensity: str) -> Pixels:
    """uint8 [H, W, 3] of an image that is no file, as `decode` makes them of one."""
    if isinstance(item, Image.Image):
        return decode_opened(item, intensity)
    if isinstance(item, np.ndarray):
        return _of_array(item, How(*parsed(intensity)))
    return decode(bytes(item), intensity)


def _is_one(images: Any) -> bool:
    single: Any = (str, os.PathLike, bytes, bytearray, Image.Image)
    # several images in one array have a dimension more
    return isinstance(images, single) or (
        isinstance(images, np.ndarray) and images.dtype.kind in "uifb" and images.ndim in (2, 3)
    )


def _many(images: Any) -> bool:
    # in no order, or names of something else; a tensor's channels come first, or do not
    other = isinstance(images, Mapping | Set) or type(images).__module__.startswith("torch")
    return isinstance(images, Iterable) and not other and getattr(images, "ndim", 1) > 0


def _check(place: int, item: Any) -> None:
    if isinstance(item, np.ndarray):
        shape = "x".join(map(str, item.shape))
        ok = (
            item.dtype.kind in "uifb"
            and item.size
            and (item.ndim == 2 or (item.ndim == 3 and item.shape[2] in _CHANNELS))
        )
        if not ok:
            raise UsageError(
                f"Image {place} is an array {shape} of {item.dtype}, which is not an image.",
                "Give uint8 arrays [height, width, 3]; np.moveaxis(a, 0, -1) puts channels last.",
            )
    elif not _is_one(item):
        raise UsageError(
            f"Image {place} has the unsupported type {type(item).__name__}.", f"Give {TAKEN}."
        )


def _of_array(values: npt.NDArray[Any], how: How) -> Pixels:
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    elif values.dtype.kind in "ui" and values.dtype.itemsize > 2 and values.min() >= 0:
        # as wide as the values need: what Python makes of numbers says nothing of their range
        values = values.astype(np.min_scalar_type(values.max()))
    return shown(values[..., None] if values.ndim == 2 else values, how)
