"""All that one image shows when it is decoded once: whether it is sound, odd, and what it is."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from unfreeze.data.channels import layout
from unfreeze.data.decode import decode_told
from unfreeze.data.deep import is_deep
from unfreeze.data.duplicates import Signature, signature
from unfreeze.data.signatures import cut_short
from unfreeze.data.sources import Source
from unfreeze.data.undecodable import Reason, Undecodable

Pixels = npt.NDArray[np.uint8]
SIGNED = 128  # pixels that the shorter side keeps at least where only a signature is made of it
_LONG = 5.0  # sides from this ratio on are extreme
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


class Note(NamedTuple):
    """Something odd about an image that can be used all the same."""

    reason: str
    detail: str


class Examination(NamedTuple):
    """One file. Without an image `reason` says why; `passing`: reading failed, not decoding.

    `height`, `width` after orientation. `digest`: 16 bytes of the content. `signature`: what its
    near-duplicates share. `keras`: JPEG without JFIF in its first bytes.
    """

    height: int = 0
    width: int = 0
    reason: Reason | None = None
    detail: str = ""
    passing: bool = False
    digest: bytes = b""
    signature: Signature | None = None
    notes: tuple[Note, ...] = ()
    keras: bool = False


class Examiner:
    """`examiner(row)`: the examination of a row of a source. What processes run."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, row: int) -> Examination:
        """Reads and decodes once; an Examination whatever the file is."""
        try:
            data = self.source.read(row)
        except Undecodable as error:
            return Examination(reason=error.reason, detail=error.detail, passing=True)
        except OSError as error:
            detail = error.strerror or str(error)
            return Examination(reason="unreadable", detail=detail, passing=True)
        except MemoryError:
            return Examination(reason="bomb", detail="out of memory while reading", passing=True)
        return examine(data, self.source.names[row], self.source.intensity)


def examine(data: bytes | Pixels, name: str, intensity: str = "auto") -> Examination:
    """The examination of a file's bytes (or pixels that a source holds)."""
    if isinstance(data, np.ndarray):
        content = hashlib.blake2b(data.tobytes(), digest_size=16).digest()
        return _seen(data, data.shape[:2], content, ())
    digest = hashlib.blake2b(data, digest_size=16).digest()
    seen: list[Note] = []
    try:
        grey, size, told = decode_told(
            data, lambda image: seen.extend(_oddities(image, data, name)), SIGNED, intensity
        )
    except Undecodable as error:
        return Examination(reason=error.reason, detail=error.detail, digest=digest)
    except MemoryError:
        return Examination(reason="bomb", detail="out of memory while decoding", digest=digest)
    seen += [Note("decoder warning", text) for text in told]
    if not told and cut_short(data):
        seen.append(Note("decoder warning", "complete, but the end-of-file marker is missing"))
    keras = data.startswith(b"\xff\xd8") and b"JFIF" not in data[:10]
    return _seen(grey, size, digest, tuple(seen))._replace(keras=keras)


def _seen(
    pixels: Pixels, size: tuple[int, ...], digest: bytes, notes: tuple[Note, ...]
) -> Examination:
    """The examination of an image of `size` of which `pixels` are all or a small version."""
    height, width = size
    if max(height, width) >= _LONG * min(height, width):
        notes += (Note("extreme shape", f"{width}x{height}"),)
    found = signature(pixels)
    return Examination(height, width, digest=digest, signature=found, notes=notes)


def _oddities(image: Image.Image, data: bytes, name: str) -> list[Note]:
    """What the header says that people should know."""
    found = []
    if (misnamed := _misnamed(name, image.format or "")) is not None:
        found.append(misnamed)
    if getattr(image, "is_animated", False):
        found.append(Note("animated", "only the first frame is used"))
    tiff = layout(data)
    if tiff is not None and tiff.note is not None:
        found.append(Note("channels", tiff.note))
    if image.mode.startswith("I") or _deep(data):
        found.append(Note("16-bit", "converted to 8 bits"))
    elif image.mode in _MODES:
        found.append(Note(*_MODES[image.mode]))
    if image.has_transparency_data:
        found.append(Note("alpha", "composited on white"))
    if (turned := _turned(image)) is not None:
        found.append(turned)
    return found


def _misnamed(name: str, found: str) -> Note | None:
    suffix = name[name.rfind(".") :].lower() if "." in name.rpartition("/")[2] else ""
    if suffix not in _SUFFIXES or found not in _FORMATS or suffix in _FORMATS[found].split():
        return None
    return Note("wrong extension", f"the content is {found}")


def _deep(data: bytes) -> bool:
    """More than 8 bits a channel, where Pillow shows 8 of colour."""
    return is_deep(data) or (data.startswith(b"\x89PNG") and len(data) > 24 and data[24] == 16)


def _turned(image: Image.Image) -> Note | None:
    try:
        orientation: Any = image.getexif().get(0x0112, 1)
    except Exception as error:  # a good image with a broken note on it stays a good image
        return Note("decoder warning", f"unreadable EXIF: {' '.join(str(error).split())}")
    turned = orientation in range(2, 9)
    return Note("rotated", f"EXIF orientation {orientation}, applied") if turned else None
