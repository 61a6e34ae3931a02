"""Colour deeper than eight bits, which Pillow cuts to its upper byte: as it is stored, to uint8."""

import functools
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from unfreeze.data.channels import layout, picked
from unfreeze.data.intensity import to_uint8
from unfreeze.data.undecodable import Undecodable

_PNG_COLOUR = (2, 6)  # kinds of PNG: red, green and blue, without and with alpha

Values = npt.NDArray[np.generic]


class How(NamedTuple):
    """The rule for deep values, and the channels that were chosen (None: the usual ones)."""

    rule: str
    channels: tuple[int, ...] | None


class Deep(NamedTuple):
    """Values [H, W, 3 or 4], red first; `turned`: the orientation is applied already."""

    values: Values
    turned: bool


def is_deep(data: bytes) -> bool:
    """Whether the header says colour of more than eight bits."""
    if data.startswith(b"\x89PNG"):
        return len(data) > 25 and data[24] == 16 and data[25] in _PNG_COLOUR
    found = layout(data)
    return found is not None and found.deep


def deep_colour(data: bytes, image: Image.Image) -> Deep | None:
    """The values of deep colour that `image`, loaded whole, shows by upper bytes; else None.

    Raises Undecodable where OpenCV does not read what Pillow read.
    """
    if not is_deep(data):
        return None
    _hush()
    found: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.ndim != 3 or {*found.shape[:2]} != {*image.size}:
        raise Undecodable("unreadable", "OpenCV cannot read its 16-bit colour")
    order = [2, 1, 0, 3][: found.shape[2]]
    tiff = layout(data)
    if tiff is not None and tiff.spare:
        order = order[:3]
    # OpenCV turns TIFF files by itself
    return Deep(found[..., order], tiff is not None)


@functools.cache
def _hush() -> None:
    # it tells stderr what is said here in words of our own
    cv2.utils.logging.setLogLevel(0)


def as_stored(image: Image.Image) -> Values:
    """The channels [H, W, C] that a loaded image has; a palette's colours."""
    values = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    values = values.astype(np.uint8) * 255 if values.dtype == np.bool_ else values
    return values[..., None] if values.ndim == 2 else values


def shown(values: Values, how: How) -> npt.NDArray[np.uint8]:
    """Pixels [H, W, 3] of values [H, W, C]: chosen channels, or colour with alpha on white."""
    if how.channels is not None:
        values = picked(values, how.channels)
    pixels = _narrow(values[..., :3], how.rule)
    if values.shape[2] == 4:
        return _on_white(pixels, values[..., 3])
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)


def _narrow(values: Values, rule: str) -> npt.NDArray[np.uint8]:
    narrow = values if values.dtype == np.uint8 else to_uint8(values, rule)
    return narrow.astype(np.uint8, copy=False)


def _on_white(pixels: npt.NDArray[np.uint8], alpha: Values) -> npt.NDArray[np.uint8]:
    whole = np.issubdtype(alpha.dtype, np.integer)
    most = 2 ** (8 * alpha.dtype.itemsize) - 1 if whole else 1
    share = (alpha.astype(np.float32) / most)[..., None]
    mixed = np.rint(pixels * share + 255 * (1 - share)).clip(0, 255)
    return np.asarray(mixed, np.uint8)
