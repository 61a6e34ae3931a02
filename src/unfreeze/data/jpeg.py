"""Ordinary JPEG by OpenCV, which is quicker; Pillow is the judge of what is right.

Both are built on libjpeg-turbo. OpenCV hides where a file ends too early and what follows a scan,
so it only sees files that are whole, marker by marker; everything else is Pillow's. What libjpeg
has to say of a damaged image that both make the same of goes to the standard error output.
"""

import functools
import io

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, features

Pixels = npt.NDArray[np.uint8]

_START, _END = b"\xff\xd8", b"\xff\xd9"
_HUFFMAN, _SCAN, _BASELINE, _PROGRESSIVE = 0xC4, 0xDA, 0xC0, 0xC2
_QUANTIZATION, _RESTART, _COMMENT = 0xDB, 0xDD, 0xFE
_APPLICATION = range(0xE0, 0xF0)
_BEFORE = {_HUFFMAN, _SCAN, _BASELINE, _PROGRESSIVE, _QUANTIZATION, _RESTART, _COMMENT}
_BEFORE |= set(_APPLICATION)
_BETWEEN = {_HUFFMAN, _SCAN}  # the scans of a progressive image
# what stands after 0xFF in the midst of a scan: a stuffed byte, or a restart
_WITHIN = np.isin(np.arange(256), [0, *range(0xD0, 0xD8)])


def quick_pixels(data: bytes, image: Image.Image) -> Pixels | None:
    """uint8 [H, W, 3] as stored of a JPEG that Pillow has opened as `image` and not yet loaded.

    None where that is Pillow's work: another format, grey or CMYK, a file that is not whole or has
    anything unusual in it. What is returned equals what Pillow would give.
    """
    if image.format != "JPEG" or image.mode != "RGB" or not ordinary(data) or not _agree():
        return None
    pixels = _by_opencv(data)
    return pixels if pixels is not None and pixels.shape[1::-1] == image.size else None


def ordinary(data: bytes) -> bool:
    """Whether a JPEG is baseline or progressive, whole, and ends with its end mark.

    Every segment must lie within the file, a baseline image has one scan, and between scans
    stands nothing but tables and scans.
    """
    if not data.startswith(_START) or not data.endswith(_END):
        return False
    end, place, allowed, frame = len(data) - 2, 2, _BEFORE, None
    marks = _marks(data)
    while place + 4 <= end:
        mark, code = data[place : place + 2]
        if mark != 0xFF or code not in allowed:
            return False
        if code in (_BASELINE, _PROGRESSIVE):
            if frame is not None:
                return False
            frame = code
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        place += 2 + length
        if length < 2 or place > end:
            return False
        if code == _SCAN:
            allowed = _BETWEEN if frame == _PROGRESSIVE else set()
            place = int(marks[np.searchsorted(marks, place)])
    return place == end and allowed is not _BEFORE


def _marks(data: bytes) -> npt.NDArray[np.int64]:
    """Where something stands that ends a scan, ascending; also in what is no scan."""
    values = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(values[:-1] == 0xFF)
    return places[~_WITHIN[values[places + 1]]]


def _by_opencv(data: bytes) -> Pixels | None:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    found = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if found is None else np.asarray(found, np.uint8)


@functools.cache
def _agree() -> bool:
    """Whether the two libraries, as they are installed here, give the same bits."""
    if not features.check("libjpeg_turbo") or not hasattr(cv2, "IMREAD_COLOR_RGB"):
        return False
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    sample = Image.fromarray(noise).resize((45, 38), Image.Resampling.BICUBIC)
    return all(
        _same(sample, subsampling, progressive)
        for subsampling in (0, 1, 2)
        for progressive in (False, True)
    )


def _same(sample: Image.Image, subsampling: int, progressive: bool) -> bool:
    written = io.BytesIO()
    sample.save(written, "JPEG", subsampling=subsampling, progressive=progressive)
    with Image.open(written) as image:
        return np.array_equal(np.asarray(image), np.asarray(_by_opencv(written.getvalue())))
