"""From encoded bytes to pixels: one way for training, prediction and export."""

import contextlib
import functools
import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, UnidentifiedImageError

from unfreeze.data.channels import READER, Layout, layout, picked, read_channels
from unfreeze.data.deep import How, as_stored, deep_colour, shown
from unfreeze.data.intensity import parsed, to_uint8
from unfreeze.data.signatures import HEAD, cut_short, known
from unfreeze.data.undecodable import Undecodable

__all__ = [
    "DECODER",
    "PIXEL_LIMIT",
    "Undecodable",
    "decode",
    "decode_told",
    "header_size",
    "shrink",
]

PIXEL_LIMIT = 178_956_970  # half a GiB of RGB; what Pillow, too, takes for a bomb
_LARGE = 32_000_000  # pixels; pictures above this are decoded one at a time, to bound memory
# what is known about a file holds for this decoder
DECODER = f"2 pillow {PIL.__version__} {READER}"

# No EPS (it runs Ghostscript) and nothing that Pillow only identifies; the vaguest format last.
_WANTED = "JPEG PNG WEBP GIF BMP TIFF AVIF JPEG2000 PPM ICO PSD DDS PCX SGI QOI BLP FLI TGA"
_ORIENTATION = 0x0112
_TURNED: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, 1),
}
_one_large = threading.Lock()
Look = Callable[[Image.Image], None]
Pixels = npt.NDArray[np.uint8]


def decode(data: bytes | npt.NDArray[np.uint8], intensity: str = "auto") -> npt.NDArray[np.uint8]:
    """Pixels uint8 [H, W, 3] of an encoded picture (pixels are passed through).

    EXIF orientation applied; grey repeated; alpha and transparent palette entries on white; CMYK
    by plain inversion; the first frame of many; deeper values by `to_uint8` with the rule
    `intensity`, which may also say which channels (`reading`). The limit of PIXEL_LIMIT is held
    before decoding. Raises Undecodable; Pillow's warnings and log never escape.
    """
    if isinstance(data, np.ndarray):
        return data
    if not data:
        raise Undecodable("empty", "the file has no bytes")
    with _pillow_silenced():
        return _decoded(data, None, intensity)


def decode_told(data: bytes, look: Look, shorter: int) -> tuple[Pixels, tuple[int, int], list[str]]:
    """(the picture made small, the full (height, width), what Pillow warned of meanwhile).

    Every pixel is decoded; then every n-th is taken, as far as the shorter side stays `shorter`
    at least. `look` sees the loaded image. For processes with one thread: warnings are
    recorded for the whole process.
    """
    if not data:
        raise Undecodable("empty", "the file has no bytes")
    size = [0, 0]

    def seen(image: Image.Image) -> None:
        look(image)
        turned = _orientation(image) > 4
        size[:] = (image.width, image.height) if turned else (image.height, image.width)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pixels = _decoded(data, seen, shorter=shorter)
    said = list(dict.fromkeys(" ".join(str(one.message).split()) for one in told))
    return pixels, (size[0], size[1]), said


def _decoded(
    data: bytes, look: Look | None, intensity: str = "auto", shorter: int | None = None
) -> Pixels:
    how, found = How(*parsed(intensity)), layout(data)
    try:
        if found is not None and (how.channels is not None or found.misread):
            return _tiff(data, found, look, how, shorter)
        try:
            return _pillow(data, look, how, shorter)
        except UnidentifiedImageError:
            if found is None:
                raise
            return _tiff(data, found, look, how, shorter)
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
    with _pillow_silenced():
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


def _pillow(data: bytes, look: Look | None, how: How, shorter: int | None) -> Pixels:
    with Image.open(io.BytesIO(data), formats=_formats()) as image, _room(image.size):
        image.load()
        if look is not None:
            # not before: asking for EXIF loads, and a second load hides what broke the first
            look(image)
        orientation = _orientation(image)
        deep = deep_colour(data, image)
        if deep is None and how.channels is None:
            pixels = _rgb(image if shorter is None else _sampled(image, shorter), how.rule)
            return _turned(pixels, orientation)
        values = as_stored(image) if deep is None else deep.values
        pixels = _turned(shown(values, how), 1 if deep is not None and deep.turned else orientation)
        return _thinned(pixels, shorter)


def _tiff(data: bytes, found: Layout, look: Look | None, how: How, shorter: int | None) -> Pixels:
    """A TIFF that Pillow does not show, or of which channels were chosen."""
    with _room((found.width, found.height)):
        values = picked(read_channels(data, found, how.channels), None)
        pixels = _turned(shown(values, how._replace(channels=None)), found.orientation)
    if look is not None:
        look(Image.fromarray(pixels))
    return _thinned(pixels, shorter)


@contextlib.contextmanager
def _room(size: tuple[int, int]) -> Iterator[None]:
    """Large pictures one at a time, too large ones not at all."""
    pixel_count = size[0] * size[1]
    if pixel_count > PIXEL_LIMIT:
        raise Undecodable("bomb", f"{pixel_count:,} pixels, the limit is {PIXEL_LIMIT:,}")
    with _one_large if pixel_count > _LARGE else contextlib.nullcontext():
        yield


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    turn = _TURNED.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _thinned(pixels: Pixels, shorter: int | None) -> Pixels:
    """Every n-th pixel, as `_sampled` does."""
    step = 1 if shorter is None else max(1, min(pixels.shape[:2]) // shorter)
    return np.ascontiguousarray(pixels[::step, ::step])


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


def _sampled(image: Image.Image, shorter: int) -> Image.Image:
    """Every n-th pixel, where that leaves `shorter` of them on the shorter side."""
    step = min(image.size) // shorter
    if step < 2:
        return image
    size = (image.width // step, image.height // step)
    return image.resize(size, Image.Resampling.NEAREST)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (as stored) where the EXIF block itself is broken."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a good picture with a broken note on it stays a good picture
        return 1


def _named(error: Exception, data: bytes) -> Undecodable:
    """Pillow's exception in the fixed vocabulary."""
    detail = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return Undecodable("bomb", detail)
    found = known(data[:HEAD])
    if isinstance(error, UnidentifiedImageError):
        if found is None:
            return Undecodable("not an image", "no known signature")
        detail = f"begins like {found} but has no readable header"
    if cut_short(data) or "truncated" in detail.lower():
        return Undecodable("truncated", detail)
    return Undecodable("unreadable", detail)


def _alone() -> None:
    # a forked process has one thread: whoever held a lock or wanted silence stayed behind
    global _one_large
    _one_large, _Silence.lock, _Silence.users = threading.Lock(), threading.Lock(), 0


class _Silence:
    """How many threads want Pillow silent, and what stands for them meanwhile."""

    lock = threading.Lock()
    users = 0
    entry: Any = None  # the filter of warnings
    level = logging.NOTSET  # of Pillow's loggers, before


@contextlib.contextmanager
def _pillow_silenced() -> Iterator[None]:
    # warnings.catch_warnings swaps global state and is not safe with threads: one filter, counted
    logger = logging.getLogger("PIL")
    with _Silence.lock:
        if not _Silence.users:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _Silence.entry, _Silence.level = warnings.filters[0], logger.level
            logger.setLevel(logging.CRITICAL + 1)
        _Silence.users += 1
    try:
        yield
    finally:
        with _Silence.lock:
            _Silence.users -= 1
            if not _Silence.users:
                logger.setLevel(_Silence.level)
                if _Silence.entry in warnings.filters:
                    warnings.filters.remove(_Silence.entry)  # type: ignore[attr-defined]
                    warnings._filters_mutated()  # type: ignore[attr-defined]
