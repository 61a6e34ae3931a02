"""Fast JPEG decoding with OpenCV, with the same result as Pillow.

Both use libjpeg-turbo. OpenCV does not report truncated files or data after a scan, so it only
decodes files whose markers are complete and in order; Pillow decodes the others. Messages of
libjpeg about damaged images that both decode alike go to stderr.
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
_BEFORE_SCAN = {_HUFFMAN, _SCAN, _BASELINE, _PROGRESSIVE, _QUANTIZATION, _RESTART, _COMMENT}
_BEFORE_SCAN |= set(_APPLICATION)
_BETWEEN_SCANS = {_HUFFMAN, _SCAN}  # between the scans of a progressive image
# bytes after 0xFF inside of a scan: a stuffed byte, or a restart marker
_INSIDE_SCAN = np.isin(np.arange(256), [0, *range(0xD0, 0xD8)])


def decode_jpeg_fast(data: bytes, image: Image.Image) -> Pixels | None:
    """Pixels uint8 [H, W, 3] as stored, of a JPEG that Pillow has opened but not loaded.

    None if Pillow has to decode the file: another format, grey, CMYK, or incomplete or unusual
    markers. The result equals that of Pillow.
    """
    if (
        image.format != "JPEG"
        or image.mode != "RGB"
        or not is_complete_jpeg(data)
        or not _decoders_agree()
    ):
        return None
    pixels = _by_opencv(data)
    return pixels if pixels is not None and pixels.shape[1::-1] == image.size else None


def is_complete_jpeg(data: bytes) -> bool:
    """Whether a JPEG is baseline or progressive, complete, and ends with its end-of-image marker.

    Every segment must be inside the file, a baseline image has one scan, and there is nothing but
    Huffman tables between scans.
    """
    if not data.startswith(_START) or not data.endswith(_END):
        return False
    end, position, allowed, frame = len(data) - 2, 2, _BEFORE_SCAN, None
    marks = _scan_ends(data)
    while position + 4 <= end:
        prefix, code = data[position : position + 2]
        if prefix != 0xFF or code not in allowed:
            return False
        if code in (_BASELINE, _PROGRESSIVE):
            if frame is not None:
                return False
            frame = code
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 2 + length
        if length < 2 or position > end:
            return False
        if code == _SCAN:
            allowed = _BETWEEN_SCANS if frame == _PROGRESSIVE else set()
            position = int(marks[np.searchsorted(marks, position)])
    return position == end and allowed is not _BEFORE_SCAN


def _scan_ends(data: bytes) -> npt.NDArray[np.int64]:
    """Ascending positions of all markers that would end a scan."""
    values = np.frombuffer(data, np.uint8)
    positions = np.flatnonzero(values[:-1] == 0xFF)
    return positions[~_INSIDE_SCAN[values[positions + 1]]]


def _by_opencv(data: bytes) -> Pixels | None:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if pixels is None else np.asarray(pixels, np.uint8)


@functools.cache
def _decoders_agree() -> bool:
    """Whether the installed versions of OpenCV and Pillow decode to the same bits."""
    if not features.check("libjpeg_turbo") or not hasattr(cv2, "IMREAD_COLOR_RGB"):
        return False
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    sample = Image.fromarray(noise).resize((45, 38), Image.Resampling.BICUBIC)
    return all(
        _decode_alike(sample, subsampling, progressive)
        for subsampling in (0, 1, 2)
        for progressive in (False, True)
    )


def _decode_alike(sample: Image.Image, subsampling: int, progressive: bool) -> bool:
    written = io.BytesIO()
    sample.save(written, "JPEG", subsampling=subsampling, progressive=progressive)
    with Image.open(written) as image:
        return np.array_equal(np.asarray(image), np.asarray(_by_opencv(written.getvalue())))
