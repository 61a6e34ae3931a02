"""Decodes encoded images to uint8 pixels: the same code for training, prediction and export."""

import contextlib
import functools
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, UnidentifiedImageError

from unfreeze.data.images.errors import Undecodable, pillow_silenced, reset_after_fork
from unfreeze.data.images.high_bit_depth import (
    IntensityRule,
    deep_colour,
    is_deep,
    stored_values,
    to_rgb8,
)
from unfreeze.data.images.intensity import parse_intensity, to_uint8
from unfreeze.data.images.jpeg import decode_jpeg_fast, is_complete_jpeg
from unfreeze.data.images.multichannel import (
    READER,
    TiffHeader,
    read_channels,
    read_tiff_header,
    select_channels,
)
from unfreeze.data.images.signatures import HEAD, format_of_signature, lacks_end_marker

__all__ = [
    "DECODER",
    "PIXEL_LIMIT",
    "Undecodable",
    "as_undecodable",
    "decode",
    "decode_all",
    "decode_pil",
    "decoded_size",
    "dispatch_decoder",
    "header_size",
    "reduced_with_warnings",
    "resize_shorter_side",
]

PIXEL_LIMIT = 178_956_970  # half a GiB of RGB; also Pillow's limit for decompression bombs
_LARGE = 32_000_000  # pixels; larger images are decoded one at a time, to bound memory
DECODER = f"2 pillow {PIL.__version__} {READER}"  # cached results are valid for this decoder

# No EPS (it runs Ghostscript), no formats that Pillow only identifies; weakest signature last.
_FORMAT_NAMES = "JPEG PNG WEBP GIF BMP TIFF AVIF JPEG2000 PPM ICO PSD DDS PCX SGI QOI BLP FLI TGA"
_ORIENTATION = 0x0112
_APPLY_ORIENTATION: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}
_large_image_lock = threading.Lock()
OnOpen = Callable[[Image.Image], None]
Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")


def decode(data: bytes | npt.NDArray[np.uint8], intensity: str = "auto") -> npt.NDArray[np.uint8]:
    """Pixels uint8 [H, W, 3] of an encoded image (arrays are returned unchanged).

    EXIF orientation is applied, grey is repeated to three channels, transparency is composited on
    white, CMYK is converted by plain inversion, and of animations the first frame is used. Values
    of more than 8 bits are scaled by `to_uint8` with the rule `intensity`, which may also select
    channels (see `format_intensity`). Images above PIXEL_LIMIT are refused before decoding. Raises
    Undecodable; Pillow's warnings and log messages are suppressed.
    """
    if isinstance(data, np.ndarray):
        return data
    if not data:
        raise Undecodable("empty", "the file is empty")
    with pillow_silenced(), as_undecodable(data):
        return _decode(data, IntensityRule(*parse_intensity(intensity)))


def decode_pil(image: Image.Image, intensity: str = "auto") -> Pixels:
    """`decode` for a Pillow image, which is not modified."""
    how = IntensityRule(*parse_intensity(intensity))
    with pillow_silenced(), _within_pixel_limit(image.size), as_undecodable(b""):
        image.load()
        if how.channels is not None:
            return _apply_orientation(to_rgb8(stored_values(image), how), _orientation(image))
        return _apply_orientation(_rgb(image, how.rule), _orientation(image))


def decode_all(data: Sequence[bytes | Pixels], intensity: str = "auto") -> list[Pixels]:
    """`decode` of each image; suppresses Pillow's warnings once (0.1 ms) instead of per image."""
    with pillow_silenced():
        return [decode(item, intensity) for item in data]


def _decode(data: bytes, how: IntensityRule) -> Pixels:
    return dispatch_decoder(
        data,
        how.channels,
        lambda header: _decode_tiff(data, header, how),
        lambda image: _decode_opened(data, image, how),
    )


def dispatch_decoder(
    data: bytes,
    channels: tuple[int, ...] | None,
    by_layout: Callable[[TiffHeader], T],
    by_pillow: Callable[[Image.Image], T],
) -> T:
    """`by_layout(header)` for TIFFs that Pillow decodes wrongly or not, else `by_pillow(image)`."""
    header = read_tiff_header(data)
    if header is not None and (channels is not None or header.misread):
        return by_layout(header)
    try:
        with _opened(data) as image:
            return by_pillow(image)
    except UnidentifiedImageError:
        if header is None:
            raise
        return by_layout(header)


def _decode_opened(data: bytes, image: Image.Image, how: IntensityRule) -> Pixels:
    """Fully decoded pixels of an image that Pillow has opened."""
    pixels = decode_jpeg_fast(data, image) if how.channels is None else None
    if pixels is None:
        image.load()
        if how.channels is not None or is_deep(data):
            return _decode_stored_values(data, image, how)
        pixels = _rgb(image, how.rule)
    return _apply_orientation(pixels, _orientation(image))


def _decode_stored_values(data: bytes, image: Image.Image, how: IntensityRule) -> Pixels:
    """Pixels of a loaded image from its stored values: 16-bit colour, or selected channels."""
    deep = deep_colour(data, image)
    if deep is None:
        return _apply_orientation(to_rgb8(stored_values(image), how), _orientation(image))
    return _apply_orientation(to_rgb8(deep.values, how), 1 if deep.turned else _orientation(image))


def _decode_tiff(data: bytes, header: TiffHeader, how: IntensityRule) -> Pixels:
    """Pixels of a TIFF that Pillow cannot decode, or with selected channels."""
    with _within_pixel_limit((header.width, header.height)):
        values = select_channels(read_channels(data, header, how.channels), None)
        return _apply_orientation(to_rgb8(values, how._replace(channels=None)), header.orientation)


def decoded_size(data: bytes, intensity: str = "auto") -> tuple[int, int]:
    """(height, width) of the result of `decode`; raises Undecodable when `decode` does."""
    return decode_reduced(data, intensity, 1)[1]


def decode_reduced(data: bytes, intensity: str, shorter: int) -> tuple[Pixels, tuple[int, int]]:
    """(a small grey version [h, w], (height, width) of the result of `decode`).

    The shorter side of the small version has at least `shorter` pixels. All of the file is
    decoded, so Undecodable is raised when `decode` raises it; a baseline or progressive JPEG is
    decoded at a reduced scale, other images are subsampled.
    """
    if not data:
        raise Undecodable("empty", "the file is empty")
    with pillow_silenced(), as_undecodable(data):
        return _small(data, lambda image: None, shorter, IntensityRule(*parse_intensity(intensity)))


def reduced_with_warnings(
    data: bytes, on_open: OnOpen, shorter: int, intensity: str = "auto"
) -> tuple[Pixels, tuple[int, int], list[str]]:
    """`decode_reduced`, and Pillow's warnings; `on_open` is called with the opened image.

    Only for single-threaded processes: warnings are recorded for the whole process.
    """
    if not data:
        raise Undecodable("empty", "the file is empty")
    with warnings.catch_warnings(record=True) as caught, as_undecodable(data):
        warnings.simplefilter("always")
        pixels, size = _small(data, on_open, shorter, IntensityRule(*parse_intensity(intensity)))
    messages = list(dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught))
    return pixels, size, messages


def _small(
    data: bytes, on_open: OnOpen, shorter: int, how: IntensityRule
) -> tuple[Pixels, tuple[int, int]]:
    return dispatch_decoder(
        data,
        how.channels,
        lambda header: _small_tiff(data, header, on_open, shorter, how),
        lambda image: _small_opened(data, image, on_open, shorter, how),
    )


def _small_opened(
    data: bytes, image: Image.Image, on_open: OnOpen, shorter: int, how: IntensityRule
) -> tuple[Pixels, tuple[int, int]]:
    if image.format == "JPEG" and is_complete_jpeg(data) and how.channels is None:
        on_open(image)
        size = _oriented_size(image)
        _draft(image, shorter)
        return _apply_orientation(_grey(image, shorter), _orientation(image)), size
    image.load()
    # after loading: reading EXIF loads, and a second load hides the error of the first
    on_open(image)
    if how.channels is not None or is_deep(data):
        return _grey(_decode_stored_values(data, image, how), shorter), _oriented_size(image)
    return _apply_orientation(_grey(image, shorter), _orientation(image)), _oriented_size(image)


def _draft(image: Image.Image, shorter: int) -> None:
    """Loads a JPEG in grey at a half, a quarter or an eighth of its size."""
    step = max(min(image.size) // shorter, 1)
    size = (max(image.width // step, 1), max(image.height // step, 1))
    image.draft("L" if image.mode == "RGB" else None, size)
    image.load()


def _small_tiff(
    data: bytes, header: TiffHeader, on_open: OnOpen, shorter: int, how: IntensityRule
) -> tuple[Pixels, tuple[int, int]]:
    pixels = _decode_tiff(data, header, how)
    on_open(Image.fromarray(pixels))
    return _grey(pixels, shorter), (pixels.shape[0], pixels.shape[1])


def _grey(pixels: Image.Image | Pixels, shorter: int) -> Pixels:
    """Grey [h, w], subsampled to a shorter side of about twice `shorter`.

    Twice, because subsampling skips pixels, while a reduced JPEG averages them.
    """
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    step = min(image.size) // (2 * shorter)
    if step > 1:
        size = (image.width // step, image.height // step)
        image = image.resize(size, Image.Resampling.NEAREST)
    if image.mode == "L" and not image.has_transparency_data:
        return np.asarray(image)
    return np.asarray(cv2.cvtColor(_rgb(image, "auto"), cv2.COLOR_RGB2GRAY), np.uint8)


@contextlib.contextmanager
def as_undecodable(data: bytes) -> Iterator[None]:
    """Converts every exception of the block to Undecodable."""
    try:
        yield
    except Undecodable:
        raise
    except Exception as error:  # malformed files make decoders raise any exception
        raise _as_undecodable(error, data) from error


def resize_shorter_side(
    pixels: npt.NDArray[np.uint8], shorter: int | None
) -> npt.NDArray[np.uint8]:
    """`pixels` resized to a shorter side of at most `shorter`: antialiased, never enlarged."""
    height, width = pixels.shape[:2]
    if shorter is None or min(height, width) <= shorter:
        return pixels
    scale = shorter / min(height, width)
    size = (max(shorter, round(width * scale)), max(shorter, round(height * scale)))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def header_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header, before orientation; raises Undecodable."""
    with pillow_silenced():
        try:
            with Image.open(io.BytesIO(data), formats=_formats()) as image:
                return image.height, image.width
        except Exception as error:  # as in `decode`
            if (header := read_tiff_header(data)) is not None:
                return header.height, header.width
            raise _as_undecodable(error, data) from error


@functools.cache
def _formats() -> list[str]:
    Image.init()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_reset_locks_after_fork)
    return [name for name in _FORMAT_NAMES.split() if name in Image.OPEN]


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Opens an image and reads its header; holds the lock for large images."""
    with Image.open(io.BytesIO(data), formats=_formats()) as image, _within_pixel_limit(image.size):
        yield image


@contextlib.contextmanager
def _within_pixel_limit(size: tuple[int, int]) -> Iterator[None]:
    """Refuses images above PIXEL_LIMIT; a lock lets large images decode one at a time."""
    pixel_count = size[0] * size[1]
    if pixel_count > PIXEL_LIMIT:
        raise Undecodable("bomb", f"{pixel_count:,} pixels; the limit is {PIXEL_LIMIT:,}")
    with _large_image_lock if pixel_count > _LARGE else contextlib.nullcontext():
        yield


def _rgb(image: Image.Image, rule: str) -> npt.NDArray[np.uint8]:
    if image.mode[0] in "IF":
        grey = to_uint8(np.asarray(image), rule)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layered, mask=layered.getchannel("A"))
        return np.array(white)
    # a copy: arrays on Pillow's buffer are read-only, and torch warns about those
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    """The pixels with the EXIF orientation applied."""
    turn = _APPLY_ORIENTATION.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (as stored) if EXIF is malformed or has an unknown value."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # malformed metadata does not make the image unusable
        return 1
    return orientation if orientation in _APPLY_ORIENTATION else 1


def _oriented_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) after orientation."""
    if _orientation(image) > 4:
        return image.width, image.height
    return image.height, image.width


def _as_undecodable(error: Exception, data: bytes) -> Undecodable:
    """Undecodable with the reason that fits an exception of a decoder."""
    detail = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return Undecodable("bomb", detail)
    format_name = format_of_signature(data[:HEAD])
    if isinstance(error, UnidentifiedImageError):
        if format_name is None:
            return Undecodable("not an image", "no known image signature")
        detail = f"{format_name} signature, but no readable header"
    if lacks_end_marker(data) or "truncated" in detail.lower():
        return Undecodable("truncated", detail)
    return Undecodable("unreadable", detail)


def _reset_locks_after_fork() -> None:
    # after a fork no other thread exists that could release a held lock
    global _large_image_lock
    _large_image_lock = threading.Lock()
    reset_after_fork()
