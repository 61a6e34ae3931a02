"""Multichannel TIFF files: reads their headers and selects channels.

Pillow reads up to four 8-bit channels, or one channel of more bits. Other TIFF files are read with
tifffile, if it is installed. By default the first three channels are red, green and blue; of two
channels the first is used as grey.
"""

import functools
import importlib.util
import io
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.images.errors import Undecodable

_STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_RGB = 2  # photometric interpretation
_BYTES_LIMIT = 2**31  # of all channels, decompressed
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 262, 277
_OFFSETS, _COUNTS = (273, 324), (279, 325)  # tags for strips and for tiles
_ORIENTATION, _PLANAR, _EXTRA = 274, 284, 338
INSTALLED = importlib.util.find_spec("tifffile") is not None
# the installed packages
READER = "+".join(filter(importlib.util.find_spec, ("tifffile", "imagecodecs")))


class TiffHeader(NamedTuple):
    """Header of a TIFF; `planar`: channels are stored one after the other.

    `whole`: the file contains all of its pixel data.
    """

    height: int
    width: int
    channels: int
    bits: int
    photometric: int
    planar: bool
    orientation: int
    spare: bool  # an extra channel is not alpha
    whole: bool

    @property
    def misread(self) -> bool:
        """Whether Pillow opens the file but decodes it wrongly."""
        return self.planar and self.bits > 8 and self.channels > 1

    @property
    def deep(self) -> bool:
        """Whether it is a colour image of more than 8 bits per channel."""
        return self.bits > 8 and self.channels > 2

    @property
    def note(self) -> str | None:
        """Which channels are used by default; None if all are."""
        if self.channels > 4 or (self.channels == 4 and self.spare):
            return f"{self.channels} channels; only the first three are used"
        if self.channels > 1 and self.photometric < _RGB:
            used = "first three are" if self.channels > 2 else "first is"
            return f"{self.channels} channels; only the {used} used"
        return None


def read_tiff_header(data: bytes) -> TiffHeader | None:
    """The layout of the first page of a TIFF; None for other formats and unreadable headers."""
    if not data.startswith(_STARTS):
        return None
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        big = 43 in data[2:4]
        tags = ImageFileDirectory_v2(data[: 16 if big else 8])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        return _layout_of_tags(tags, len(data))
    except Exception:  # malformed header: decoding will report the reason
        return None


def _layout_of_tags(tags: Any, size: int) -> TiffHeader:
    extra = _integers(tags.get(_EXTRA))
    ends = [
        offset + count
        for offset_tag, count_tag in zip(_OFFSETS, _COUNTS, strict=True)
        for offset, count in zip(
            _integers(tags.get(offset_tag)), _integers(tags.get(count_tag)), strict=False
        )
    ]
    photometric = int(tags.get(_PHOTOMETRIC, 1))
    return TiffHeader(
        height=int(tags[_HEIGHT]),
        width=int(tags[_WIDTH]),
        channels=int(tags.get(_SAMPLES, 1)),
        bits=max(_integers(tags.get(_BITS)) or [1]),
        photometric=photometric,
        planar=tags.get(_PLANAR, 1) == 2,
        orientation=int(tags.get(_ORIENTATION, 1)),
        spare=photometric == _RGB and 0 in extra,
        whole=max(ends, default=size + 1) <= size,
    )


def _integers(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(item) for item in value] if isinstance(value, tuple) else [int(value)]


def read_channels(
    data: bytes, header: TiffHeader, selected: Sequence[int] | None
) -> npt.NDArray[np.generic]:
    """Stored values [H, W, C] of the selected channels, EXIF orientation not applied.

    By default C is 3, or 1 for fewer than three channels. If the first page has one channel and
    the file has several pages of that size, `selected` are pages. Raises Undecodable.
    """
    if not INSTALLED:
        raise Undecodable(
            "channels",
            f"reading {header.channels} channels of {header.bits} bits needs "
            "pip install 'unfreeze[tiff]'",
        )
    if not header.whole:
        raise Undecodable("truncated", "the file ends before its pixel data does")
    size = header.height * header.width * header.channels * max(1, header.bits // 8)
    if size > _BYTES_LIMIT:
        raise Undecodable("bomb", f"{size:,} bytes in {header.channels} channels")
    try:
        with _tifffile().TiffFile(io.BytesIO(data)) as file:
            if selected is not None and header.channels == 1 and len(file.pages) > 1:
                return _read_pages(file, selected)
            page = file.pages[0]
            return select_channels(_channels_last(page.asarray(), page.axes), selected)
    except Exception as error:
        if "'imagecodecs' package" in str(error):
            detail = "its compression needs pip install 'unfreeze[tiff]'"
            raise Undecodable("channels", detail) from error
        raise


@functools.cache
def _tifffile() -> Any:
    import tifffile

    # its log messages would duplicate our errors
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    return tifffile


def _read_pages(file: Any, selected: Sequence[int]) -> npt.NDArray[np.generic]:
    _check_channels_exist(len(file.pages), selected)
    pages = [file.pages[index].asarray() for index in selected]
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


def select_channels(
    values: npt.NDArray[np.generic], selected: Sequence[int] | None
) -> npt.NDArray[np.generic]:
    """The selected channels of [H, W, C]; by default the first three, or the first of two."""
    count = values.shape[2]
    if selected is None:
        return values[..., :3] if count > 2 else values[..., :1]
    _check_channels_exist(count, selected)
    return values[..., list(selected)]


def _check_channels_exist(count: int, selected: Sequence[int]) -> None:
    if max(selected) >= count:
        raise Undecodable(
            "channels",
            f"channel {max(selected)} does not exist: the image has {count}, numbered from 0",
        )
