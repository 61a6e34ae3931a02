"""Colour of more than 8 bits per channel, which Pillow truncates: stored values, and uint8."""

import functools
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from unfreeze.data.images.errors import Undecodable
from unfreeze.data.images.intensity import to_uint8
from unfreeze.data.images.multichannel import read_tiff_header, select_channels

_PNG_COLOUR = (2, 6)  # PNG colour types: RGB, RGBA

Values = npt.NDArray[np.generic]


class IntensityRule(NamedTuple):
    """The rule for values of more than 8 bits, and the selected channels (None: default)."""

    rule: str
    channels: tuple[int, ...] | None


class FullDepthColour(NamedTuple):
    """Values [H, W, 3 or 4], RGB order; `turned`: whether the orientation is already applied."""

    values: Values
    turned: bool


def is_deep(data: bytes) -> bool:
    """Whether the header says colour of more than 8 bits per channel."""
    if data.startswith(b"\x89PNG"):
        return len(data) > 25 and data[24] == 16 and data[25] in _PNG_COLOUR
    header = read_tiff_header(data)
    return header is not None and header.deep


def deep_colour(data: bytes, image: Image.Image) -> FullDepthColour | None:
    """Full-depth values if the image has more than 8 bits per channel of colour, else None.

    `image`: the loaded image, of which Pillow has the upper bytes. Raises Undecodable if OpenCV
    cannot read the file.
    """
    if not is_deep(data):
        return None
    _silence_opencv()
    decoded: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.ndim != 3 or {*decoded.shape[:2]} != {*image.size}:
        raise Undecodable("unreadable", "OpenCV cannot read its 16-bit colour")
    order = [2, 1, 0, 3][: decoded.shape[2]]
    tiff = read_tiff_header(data)
    if tiff is not None and tiff.spare:
        order = order[:3]
    # OpenCV applies the orientation of TIFF files
    return FullDepthColour(decoded[..., order], tiff is not None)


@functools.cache
def _silence_opencv() -> None:
    # its messages on stderr would duplicate our errors
    cv2.utils.logging.setLogLevel(0)


def stored_values(image: Image.Image) -> Values:
    """The stored channels [H, W, C] of a loaded image; palettes become RGB."""
    values = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    values = values.astype(np.uint8) * 255 if values.dtype == np.bool_ else values
    return values[..., None] if values.ndim == 2 else values


def to_rgb8(values: Values, how: IntensityRule) -> npt.NDArray[np.uint8]:
    """Pixels uint8 [H, W, 3] of values [H, W, C]: selected channels, alpha composited on white."""
    if how.channels is not None:
        values = select_channels(values, how.channels)
    pixels = _to_uint8(values[..., :3], how.rule)
    if values.shape[2] == 4:
        return _composite_on_white(pixels, values[..., 3])
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)


def _to_uint8(values: Values, rule: str) -> npt.NDArray[np.uint8]:
    pixels = values if values.dtype == np.uint8 else to_uint8(values, rule)
    return pixels.astype(np.uint8, copy=False)


def _composite_on_white(pixels: npt.NDArray[np.uint8], alpha: Values) -> npt.NDArray[np.uint8]:
    is_integer = np.issubdtype(alpha.dtype, np.integer)
    maximum = 2 ** (8 * alpha.dtype.itemsize) - 1 if is_integer else 1
    opacity = (alpha.astype(np.float32) / maximum)[..., None]
    blended = np.rint(pixels * opacity + 255 * (1 - opacity)).clip(0, 255)
    return np.asarray(blended, np.uint8)
