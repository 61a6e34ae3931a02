"""Image inputs of the Python API: paths, encoded bytes, Pillow images and arrays."""

import os
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unfreeze.data.images.decode import decode, decode_pil
from unfreeze.data.images.high_bit_depth import IntensityRule, to_rgb8
from unfreeze.data.images.intensity import parse_intensity
from unfreeze.data.images.signatures import HEAD, format_of_signature
from unfreeze.errors import UsageError

SUPPORTED_INPUTS = "paths, Pillow images, uint8 arrays [H, W, 3], and encoded bytes"
_CHANNELS = (1, 3, 4)  # grey, colour, colour with alpha

Pixels = npt.NDArray[np.uint8]


def as_image_list(images: Any) -> list[Any]:
    """A list of the images in `images`: one image, or an iterable of images.

    UsageError if there are none, or if an item is not an image; the message has its index.
    """
    if _is_single_image(images):
        items = [images]
    elif _is_image_sequence(images):
        items = list(images)
    else:
        raise UsageError(f"A {type(images).__name__} is not an image.", f"Give {SUPPORTED_INPUTS}.")
    for index, item in enumerate(items):
        _check(index, item)
    if not items:
        raise UsageError("No images to predict.", f"Give {SUPPORTED_INPUTS}.")
    return items


def is_path(item: Any) -> bool:
    """Whether the item is a path, not image data."""
    is_name = isinstance(item, str | os.PathLike)
    return is_name or (isinstance(item, bytes) and format_of_signature(item[:HEAD]) is None)


def pixels_of(item: Any, intensity: str) -> Pixels:
    """Pixels uint8 [H, W, 3] of an image that is not a path, as from `decode`."""
    if isinstance(item, Image.Image):
        return decode_pil(item, intensity)
    if isinstance(item, np.ndarray):
        return _pixels_of_array(item, IntensityRule(*parse_intensity(intensity)))
    return decode(bytes(item), intensity)


def _is_single_image(images: Any) -> bool:
    single: Any = (str, os.PathLike, bytes, bytearray, Image.Image)
    # a batch of images in one array has one more dimension
    return isinstance(images, single) or (
        isinstance(images, np.ndarray) and images.dtype.kind in "uifb" and images.ndim in (2, 3)
    )


def _is_image_sequence(images: Any) -> bool:
    # sets have no order, mappings have keys; the channel order of tensors is ambiguous
    unsupported = isinstance(images, Mapping | Set) or type(images).__module__.startswith("torch")
    return isinstance(images, Iterable) and not unsupported and getattr(images, "ndim", 1) > 0


def _check(index: int, item: Any) -> None:
    if isinstance(item, np.ndarray):
        shape = "x".join(map(str, item.shape))
        valid = (
            item.dtype.kind in "uifb"
            and item.size
            and (item.ndim == 2 or (item.ndim == 3 and item.shape[2] in _CHANNELS))
        )
        if not valid:
            raise UsageError(
                f"Image {index} is an array {shape} of {item.dtype}, which is not an image.",
                "Give uint8 arrays [height, width, 3]; np.moveaxis(a, 0, -1) puts channels last.",
            )
    elif not _is_single_image(item):
        raise UsageError(
            f"Image {index} has the unsupported type {type(item).__name__}.",
            f"Give {SUPPORTED_INPUTS}.",
        )


def _pixels_of_array(values: npt.NDArray[Any], how: IntensityRule) -> Pixels:
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    elif values.dtype.kind in "ui" and values.dtype.itemsize > 2 and values.min() >= 0:
        # the smallest type that holds the values: the dtype of Python integers is arbitrary
        values = values.astype(np.min_scalar_type(values.max()))
    return to_rgb8(values[..., None] if values.ndim == 2 else values, how)
