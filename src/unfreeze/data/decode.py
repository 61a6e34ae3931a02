"""From encoded bytes to pixels: one way for training, prediction and export."""

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

from unfreeze.data.channels import READER, Layout, layout, picked, read_channels
from unfreeze.data.deep import How, as_stored, deep_colour, is_deep, shown
from unfreeze.data.intensity import parsed, to_uint8
from unfreeze.data.jpeg import ordinary, quick_pixels
from unfreeze.data.signatures import HEAD, cut_short, known
from unfreeze.data.silence import alone, pillow_silenced
from unfreeze.data.undecodable import Undecodable

__all__ = [
    "DECODER",
    "PIXEL_LIMIT",
    "Undecodable",
    "decode",
    "decode_all",
    "decode_opened",
    "decode_told",
    "either",
    "header_size",
    "measured",
    "naming",
    "shrink",
]

PIXEL_LIMIT = 178_956_970  # half a GiB of RGB; what Pillow, too, takes for a bomb
_LARGE = 32_000_000  # pixels; images above this are decoded one at a time, to bound memory
DECODER = f"2 pillow {PIL.__version__} {READER}"  # what is known of a file holds for this decoder

# No EPS (it runs Ghostscript) and nothing that Pillow only identifies; the vaguest format last.
_WANTED = "JPEG PNG WEBP GIF BMP TIFF AVIF JPEG2000 PPM ICO PSD DDS PCX SGI QOI BLP FLI TGA"
_ORIENTATION = 0x0112
_TURNED: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}
_one_large = threading.Lock()
Look = Callable[[Image.Image], None]
Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")


def decode(data: bytes | npt.NDArray[np.uint8], intensity: str = "auto") -> npt.NDArray[np.uint8]:
    """Pixels uint8 [H, W, 3] of an encoded image (pixels are passed through).

    EXIF orientation applied; grey repeated; alpha and transparent palette entries on white; CMYK
    by plain inversion; the first frame of many; deeper values by `to_uint8` with the rule
    `intensity`, which may also say which channels (`reading`). The limit of PIXEL_LIMIT is held
    before decoding. Raises Undecodable; Pillow's warnings and log never escape.
    """
    if isinstance(data, np.ndarray):
        return data
    if not data:
        raise Undecodable("empty", "the file is empty")
    with pillow_silenced(), naming(data):
        return _decoded(data, How(*parsed(intensity)))


def decode_opened(image: Image.Image, intensity: str = "auto") -> Pixels:
    """The same of an image that Pillow has opened or made; it stays as it is."""
    how = How(*parsed(intensity))
    with pillow_silenced(), _room(image.size), naming(b""):
        image.load()
        if how.channels is not None:
            return _turned(shown(as_stored(image), how), _orientation(image))
        return _turned(_rgb(image, how.rule), _orientation(image))


def decode_all(data: Sequence[bytes | Pixels], intensity: str = "auto") -> list[Pixels]:
    """`decode` of each; Pillow is silenced once for all, which takes 0.1 ms."""
    with pillow_silenced():
        return [decode(one, intensity) for one in data]


def _decoded(data: bytes, how: How) -> Pixels:
    return either(
        data,
        how.channels,
        lambda found: _tiff(data, found, how),
        lambda image: _shown(data, image, how),
    )


def either(
    data: bytes,
    channels: tuple[int, ...] | None,
    by_layout: Callable[[Layout], T],
    by_pillow: Callable[[Image.Image], T],
) -> T:
    """The second way for what Pillow shows as it is, the first for other TIFF files."""
    found = layout(data)
    if found is not None and (channels is not None or found.misread):
        return by_layout(found)
    try:
        with _opened(data) as image:
            return by_pillow(image)
    except UnidentifiedImageError:
        if found is None:
            raise
        return by_layout(found)


def _shown(data: bytes, image: Image.Image, how: How) -> Pixels:
    """What Pillow opened, decoded whole."""
    pixels = quick_pixels(data, image) if how.channels is None else None
    if pixels is None:
        image.load()
        if how.channels is not None or is_deep(data):
            return _as_stored(data, image, how)
        pixels = _rgb(image, how.rule)
    return _turned(pixels, _orientation(image))


def _as_stored(data: bytes, image: Image.Image, how: How) -> Pixels:
    """A loaded image by the values in its file: deep colour, or channels that were chosen."""
    deep = deep_colour(data, image)
    if deep is None:
        return _turned(shown(as_stored(image), how), _orientation(image))
    return _turned(shown(deep.values, how), 1 if deep.turned else _orientation(image))


def _tiff(data: bytes, found: Layout, how: How) -> Pixels:
    """A TIFF that Pillow does not show, or of which channels were chosen."""
    with _room((found.width, found.height)):
        values = picked(read_channels(data, found, how.channels), None)
        return _turned(shown(values, how._replace(channels=None)), found.orientation)


def measured(data: bytes, intensity: str = "auto") -> tuple[int, int]:
    """(height, width) of what `decode` would return; raises Undecodable where `decode` does."""
    return reduced(data, intensity, 1)[1]


def reduced(data: bytes, intensity: str, shorter: int) -> tuple[Pixels, tuple[int, int]]:
    """(the image small and grey [h, w], (height, width) of what `decode` would return).

    Raises Undecodable where `decode` does. The shorter side stays `shorter` at least. Everything
    that is coded is decoded; an ordinary JPEG is put together at a fraction of its size, which
    refuses what the full size refuses; of other images every n-th pixel is taken.
    """
    if not data:
        raise Undecodable("empty", "the file is empty")
    with pillow_silenced(), naming(data):
        return _small(data, lambda image: None, shorter, How(*parsed(intensity)))


def decode_told(
    data: bytes, look: Look, shorter: int, intensity: str = "auto"
) -> tuple[Pixels, tuple[int, int], list[str]]:
    """As `reduced`, and what Pillow warned of; `look` sees the opened image.

    For processes with one thread: warnings are recorded for the whole process.
    """
    if not data:
        raise Undecodable("empty", "the file is empty")
    with warnings.catch_warnings(record=True) as told, naming(data):
        warnings.simplefilter("always")
        pixels, size = _small(data, look, shorter, How(*parsed(intensity)))
    said = list(dict.fromkeys(" ".join(str(one.message).split()) for one in told))
    return pixels, size, said


def _small(data: bytes, look: Look, shorter: int, how: How) -> tuple[Pixels, tuple[int, int]]:
    return either(
        data,
        how.channels,
        lambda found: _small_tiff(data, found, look, shorter, how),
        lambda image: _small_shown(data, image, look, shorter, how),
    )


def _small_shown(
    data: bytes, image: Image.Image, look: Look, shorter: int, how: How
) -> tuple[Pixels, tuple[int, int]]:
    if image.format == "JPEG" and ordinary(data) and how.channels is None:
        look(image)
        size = _upright(image)
        _draft(image, shorter)
        return _turned(_grey(image, shorter), _orientation(image)), size
    image.load()
    # not before: asking for EXIF loads, and a second load hides what broke the first
    look(image)
    if how.channels is not None or is_deep(data):
        return _grey(_as_stored(data, image, how), shorter), _upright(image)
    return _turned(_grey(image, shorter), _orientation(image)), _upright(image)


def _draft(image: Image.Image, shorter: int) -> None:
    """Loads a JPEG at a half, a quarter or an eighth of its size, colour left out."""
    step = max(min(image.size) // shorter, 1)
    wanted = (max(image.width // step, 1), max(image.height // step, 1))
    image.draft("L" if image.mode == "RGB" else None, wanted)
    image.load()


def _small_tiff(
    data: bytes, found: Layout, look: Look, shorter: int, how: How
) -> tuple[Pixels, tuple[int, int]]:
    pixels = _tiff(data, found, how)
    look(Image.fromarray(pixels))
    return _grey(pixels, shorter), (pixels.shape[0], pixels.shape[1])


def _grey(pixels: Image.Image | Pixels, shorter: int) -> Pixels:
    """Grey [h, w] of every n-th pixel of every n-th row, twice `shorter` of them where there are.

    Fewer would be too few where they stand for the rest, as they do not in a reduced JPEG.
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
def naming(data: bytes) -> Iterator[None]:
    """Whatever is raised is raised as Undecodable."""
    try:
        yield
    except Undecodable:
        raise
    except Exception as error:  # hostile bytes make decoders raise anything at all
        raise _named(error, data) from error


def shrink(pixels: npt.NDArray[np.uint8], shorter: int | None) -> npt.NDArray[np.uint8]:
    """`pixels` with a shorter side of at most `shorter`: antialiased, never enlarged."""
    height, width = pixels.shape[:2]
    if shorter is None or min(height, width) <= shorter:
        return pixels
    scale = shorter / min(height, width)
    size = (max(shorter, round(width * scale)), max(shorter, round(height * scale)))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def header_size(data: bytes) -> tuple[int, int]:
    """(height, width) as the header says, before orientation; raises Undecodable."""
    with pillow_silenced():
        try:
            with Image.open(io.BytesIO(data), formats=_formats()) as image:
                return image.height, image.width
        except Exception as error:  # as in `decode`
            if (found := layout(data)) is not None:
                return found.height, found.width
            raise _named(error, data) from error


@functools.cache
def _formats() -> list[str]:
    Image.init()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_alone)
    return [name for name in _WANTED.split() if name in Image.OPEN]


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The image with its header read, to be decoded; large ones one at a time."""
    with Image.open(io.BytesIO(data), formats=_formats()) as image, _room(image.size):
        yield image


@contextlib.contextmanager
def _room(size: tuple[int, int]) -> Iterator[None]:
    """Large images one at a time, too large ones not at all."""
    pixel_count = size[0] * size[1]
    if pixel_count > PIXEL_LIMIT:
        raise Undecodable("bomb", f"{pixel_count:,} pixels; the limit is {PIXEL_LIMIT:,}")
    with _one_large if pixel_count > _LARGE else contextlib.nullcontext():
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
    # a copy: what shares Pillow's bytes cannot be written to, and torch warns of such arrays
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """The pixels as EXIF says they are to be seen."""
    turn = _TURNED.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (as stored) where EXIF is broken or says what nobody knows."""
    try:
        found = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a good image with a broken note on it stays a good image
        return 1
    return found if found in _TURNED else 1


def _upright(image: Image.Image) -> tuple[int, int]:
    """(height, width) after orientation."""
    if _orientation(image) > 4:
        return image.width, image.height
    return image.height, image.width


def _named(error: Exception, data: bytes) -> Undecodable:
    """Pillow's exception in the fixed vocabulary."""
    detail = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return Undecodable("bomb", detail)
    found = known(data[:HEAD])
    if isinstance(error, UnidentifiedImageError):
        if found is None:
            return Undecodable("not an image", "no known image signature")
        detail = f"{found} signature, but no readable header"
    if cut_short(data) or "truncated" in detail.lower():
        return Undecodable("truncated", detail)
    return Undecodable("unreadable", detail)


def _alone() -> None:
    # a forked process has one thread: whoever held a lock stayed behind
    global _one_large
    _one_large = threading.Lock()
    alone()
