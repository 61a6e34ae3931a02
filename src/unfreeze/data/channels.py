"""TIFF files of more channels than Pillow shows, and which of their channels are used.

Pillow reads up to four channels of eight bits, and one of more. Everything else in a TIFF is read
by tifffile, where it is installed: without a choice the first three channels are red, green and
blue, and of two the first is grey.
"""

import functools
import importlib.util
import io
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.undecodable import Undecodable

_STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_RGB = 2  # photometric interpretation
_BYTES_LIMIT = 2**31  # of all channels together, unpacked
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 262, 277
_OFFSETS, _COUNTS = (273, 324), (279, 325)  # of strips, of tiles
_ORIENTATION, _PLANAR, _EXTRA = 274, 284, 338
INSTALLED = importlib.util.find_spec("tifffile") is not None
READER = "+".join(filter(importlib.util.find_spec, ("tifffile", "imagecodecs")))  # what is there


class Layout(NamedTuple):
    """What the header of a TIFF says; `planar`: channels lie one after the other.

    `whole`: the file does not end before its pixels do.
    """

    height: int
    width: int
    channels: int
    bits: int
    photometric: int
    planar: bool
    orientation: int
    spare: bool  # the fourth channel of four is no alpha
    whole: bool

    @property
    def misread(self) -> bool:
        """Whether Pillow opens it and shows something else than what is there."""
        return self.planar and self.bits > 8 and self.channels > 1

    @property
    def deep(self) -> bool:
        """Whether it is colour of more than eight bits."""
        return self.bits > 8 and self.channels > 2

    @property
    def note(self) -> str | None:
        """What of it is used, where that is not everything."""
        if self.channels > 4 or (self.channels == 4 and self.spare):
            return f"{self.channels} channels; only the first three are used"
        if self.channels > 1 and self.photometric < _RGB:
            used = "first three are" if self.channels > 2 else "first is"
            return f"{self.channels} channels; only the {used} used"
        return None


def layout(data: bytes) -> Layout | None:
    """The layout of a TIFF's first image; None for other bytes, and where there is no header."""
    if not data.startswith(_STARTS):
        return None
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        big = 43 in data[2:4]
        tags = ImageFileDirectory_v2(data[: 16 if big else 8])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        return _read(tags, len(data))
    except Exception:  # what is no header says nothing; whoever decodes it says why
        return None


def _read(tags: Any, size: int) -> Layout:
    extra = _several(tags.get(_EXTRA))
    ends = [
        offset + count
        for place, counted in zip(_OFFSETS, _COUNTS, strict=True)
        for offset, count in zip(
            _several(tags.get(place)), _several(tags.get(counted)), strict=False
        )
    ]
    photometric = int(tags.get(_PHOTOMETRIC, 1))
    return Layout(
        height=int(tags[_HEIGHT]),
        width=int(tags[_WIDTH]),
        channels=int(tags.get(_SAMPLES, 1)),
        bits=max(_several(tags.get(_BITS)) or [1]),
        photometric=photometric,
        planar=tags.get(_PLANAR, 1) == 2,
        orientation=int(tags.get(_ORIENTATION, 1)),
        spare=photometric == _RGB and 0 in extra,
        whole=max(ends, default=size + 1) <= size,
    )


def _several(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(one) for one in value] if isinstance(value, tuple) else [int(value)]


def read_channels(
    data: bytes, found: Layout, chosen: Sequence[int] | None
) -> npt.NDArray[np.generic]:
    """Values [H, W, 3 or 1] of the chosen channels, as stored and not turned; raises Undecodable.

    Where the first image has one channel and the file has several images of its size, these
    are the channels that may be chosen.
    """
    if not INSTALLED:
        raise Undecodable(
            "channels",
            f"reading {found.channels} channels of {found.bits} bits needs "
            "pip install 'unfreeze[tiff]'",
        )
    if not found.whole:
        raise Undecodable("truncated", "the file ends before its pixel data does")
    size = found.height * found.width * found.channels * max(1, found.bits // 8)
    if size > _BYTES_LIMIT:
        raise Undecodable("bomb", f"{size:,} bytes in {found.channels} channels")
    try:
        with _tifffile().TiffFile(io.BytesIO(data)) as file:
            if chosen is not None and found.channels == 1 and len(file.pages) > 1:
                return _pages(file, chosen)
            page = file.pages[0]
            return picked(_channels_last(page.asarray(), page.axes), chosen)
    except Exception as error:
        if "'imagecodecs' package" in str(error):
            said = "its compression needs pip install 'unfreeze[tiff]'"
            raise Undecodable("channels", said) from error
        raise


@functools.cache
def _tifffile() -> Any:
    import tifffile

    # it logs what is said here in words of our own
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    return tifffile


def _pages(file: Any, chosen: Sequence[int]) -> npt.NDArray[np.generic]:
    _refuse_absent(len(file.pages), chosen)
    pages = [file.pages[number].asarray() for number in chosen]
    if any(page.ndim != 2 or page.shape != pages[0].shape for page in pages):
        raise Undecodable(
            "channels", "its pages differ in size, so they are not channels of one image"
        )
    return np.stack(pages, axis=2)


def _channels_last(values: npt.NDArray[np.generic], axes: str) -> npt.NDArray[np.generic]:
    if axes == "YX":
        return values[..., None]
    if axes == "SYX":
        return np.moveaxis(values, 0, 2)
    if axes == "YXS":
        return values
    raise Undecodable("channels", f"unsupported TIFF axes {axes} (expected YX, SYX or YXS)")


def picked(
    values: npt.NDArray[np.generic], chosen: Sequence[int] | None
) -> npt.NDArray[np.generic]:
    """The chosen channels of [H, W, C]: by default the first three, or one where there are two."""
    count = values.shape[2]
    if chosen is None:
        return values[..., :3] if count > 2 else values[..., :1]
    _refuse_absent(count, chosen)
    return values[..., list(chosen)]


def _refuse_absent(count: int, chosen: Sequence[int]) -> None:
    if max(chosen) >= count:
        raise Undecodable(
            "channels",
            f"channel {max(chosen)} does not exist: the image has {count}, numbered from 0",
        )
