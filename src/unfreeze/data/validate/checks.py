"""Checks one image file: whether it can be decoded, its size, hash and peculiarities."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from unfreeze.data.images.decode import reduced_with_warnings
from unfreeze.data.images.errors import Reason, Undecodable
from unfreeze.data.images.high_bit_depth import is_deep
from unfreeze.data.images.multichannel import read_tiff_header
from unfreeze.data.images.signatures import lacks_end_marker
from unfreeze.data.sources.source import Source
from unfreeze.data.validate.duplicates import Signature, signature

Pixels = npt.NDArray[np.uint8]
SIGNATURE_SIDE = 128  # pixels: least shorter side of the reduced image for the signature
_LONG = 5.0  # aspect ratio from which the shape is extreme
_FORMATS = {
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo",
    "MPO": ".jpg .jpeg .jpe .jfif .mpo",
    "PNG": ".png .apng",
    "GIF": ".gif",
    "BMP": ".bmp .dib",
    "TIFF": ".tif .tiff",
    "WEBP": ".webp",
    "AVIF": ".avif",
    "JPEG2000": ".jp2 .j2k .j2c .jpc .jpx",
    "PPM": ".ppm .pgm .pbm .pnm .pfm",
}
_SUFFIXES = {suffix for names in _FORMATS.values() for suffix in names.split()}
_MODES = {
    "CMYK": ("CMYK", "converted to RGB"),
    "YCCK": ("CMYK", "converted to RGB"),
    "1": ("grey", "1-bit black and white"),
    "L": ("grey", "one channel"),
    "LA": ("grey", "one channel"),
    "P": ("palette", "indexed colours"),
    "F": ("float", "32-bit float"),
}


class ImageNote(NamedTuple):
    """A peculiarity of a usable image."""

    reason: str
    detail: str


class ImageCheck(NamedTuple):
    """Result of the check of one file; `reason` is set if it cannot be used.

    `passing`: reading failed, not decoding, so the failure may be temporary. `height`, `width`:
    after orientation. `digest`: 16-byte content hash. `signature`: perceptual hash. `keras`: JPEG
    without JFIF in its first 10 bytes, which the Keras example filters out.
    """

    height: int = 0
    width: int = 0
    reason: Reason | None = None
    detail: str = ""
    passing: bool = False
    digest: bytes = b""
    signature: Signature | None = None
    notes: tuple[ImageNote, ...] = ()
    keras: bool = False


class ImageChecker:
    """`examiner(row)` checks one row of a source; runs in worker processes."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, row: int) -> ImageCheck:
        """Reads and decodes the file once; never raises for a damaged file."""
        try:
            data = self.source.read(row)
        except Undecodable as error:
            return ImageCheck(reason=error.reason, detail=error.detail, passing=True)
        except OSError as error:
            detail = error.strerror or str(error)
            return ImageCheck(reason="unreadable", detail=detail, passing=True)
        except MemoryError:
            return ImageCheck(reason="bomb", detail="out of memory while reading", passing=True)
        return check_image(data, self.source.names[row], self.source.intensity)


def check_image(data: bytes | Pixels, name: str, intensity: str = "auto") -> ImageCheck:
    """Checks the bytes of a file (or the pixels of an array source)."""
    if isinstance(data, np.ndarray):
        content = hashlib.blake2b(data.tobytes(), digest_size=16).digest()
        return _decodable(data, data.shape[:2], content, ())
    digest = hashlib.blake2b(data, digest_size=16).digest()
    notes: list[ImageNote] = []
    try:
        grey, size, warnings = reduced_with_warnings(
            data,
            lambda image: notes.extend(_header_notes(image, data, name)),
            SIGNATURE_SIDE,
            intensity,
        )
    except Undecodable as error:
        return ImageCheck(reason=error.reason, detail=error.detail, digest=digest)
    except MemoryError:
        return ImageCheck(reason="bomb", detail="out of memory while decoding", digest=digest)
    notes += [ImageNote("decoder warning", text) for text in warnings]
    if not warnings and lacks_end_marker(data):
        notes.append(
            ImageNote("decoder warning", "complete, but the end-of-file marker is missing")
        )
    keras = data.startswith(b"\xff\xd8") and b"JFIF" not in data[:10]
    return _decodable(grey, size, digest, tuple(notes))._replace(keras=keras)


def _decodable(
    pixels: Pixels, size: tuple[int, ...], digest: bytes, notes: tuple[ImageNote, ...]
) -> ImageCheck:
    """The result for a decodable image of `size`; `pixels`: the image or a reduced version."""
    height, width = size
    if max(height, width) >= _LONG * min(height, width):
        notes += (ImageNote("extreme shape", f"{width}x{height}"),)
    hashed = signature(pixels)
    return ImageCheck(height, width, digest=digest, signature=hashed, notes=notes)


def _header_notes(image: Image.Image, data: bytes, name: str) -> list[ImageNote]:
    """Peculiarities that the header shows."""
    notes = []
    if (misnamed := _extension_note(name, image.format or "")) is not None:
        notes.append(misnamed)
    if getattr(image, "is_animated", False):
        notes.append(ImageNote("animated", "only the first frame is used"))
    tiff = read_tiff_header(data)
    if tiff is not None and tiff.note is not None:
        notes.append(ImageNote("channels", tiff.note))
    if image.mode.startswith("I") or _more_than_8_bits(data):
        notes.append(ImageNote("16-bit", "converted to 8 bits"))
    elif image.mode in _MODES:
        notes.append(ImageNote(*_MODES[image.mode]))
    if image.has_transparency_data:
        notes.append(ImageNote("alpha", "composited on white"))
    if (rotation := _rotation_note(image)) is not None:
        notes.append(rotation)
    return notes


def _extension_note(name: str, format_name: str) -> ImageNote | None:
    suffix = name[name.rfind(".") :].lower() if "." in name.rpartition("/")[2] else ""
    if (
        suffix not in _SUFFIXES
        or format_name not in _FORMATS
        or suffix in _FORMATS[format_name].split()
    ):
        return None
    return ImageNote("wrong extension", f"the content is {format_name}")


def _more_than_8_bits(data: bytes) -> bool:
    """Whether the file has more than 8 bits per channel, although Pillow opens it with 8."""
    return is_deep(data) or (data.startswith(b"\x89PNG") and len(data) > 24 and data[24] == 16)


def _rotation_note(image: Image.Image) -> ImageNote | None:
    try:
        orientation: Any = image.getexif().get(0x0112, 1)
    except Exception as error:  # malformed metadata does not make the image unusable
        return ImageNote("decoder warning", f"unreadable EXIF: {' '.join(str(error).split())}")
    rotated = orientation in range(2, 9)
    return ImageNote("rotated", f"EXIF orientation {orientation}, applied") if rotated else None
