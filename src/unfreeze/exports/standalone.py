"""Preprocesses images for the model in this folder; needs only numpy and Pillow.

`prepare("photo.jpg")` returns the network's input for one image. Files are read as in training:
EXIF rotation applied, transparent parts white, CMYK as RGB, and 16-bit and float greyscale scaled
by the range in export.json. 16-bit colour and selected channels are not supported here and raise
ValueError; `unfreeze predict` reads them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

HERE = Path(__file__).parent
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_WHITE = (255, 1023, 4095, 16383, 65535)  # 8, 10, 12, 14, 16 bits
_BITS = 258  # the TIFF tag BitsPerSample


def prepare(path: str | Path, how: dict[str, Any] | None = None) -> npt.NDArray[np.float32]:
    """float32 [3, S, S]: shorter side resized, centre crop, normalised.

    With a `fit` other than crop the whole image: resized, or with bars that make it square. For
    segmentation [3, H, W].

    `how`: the preprocessing; by default from export.json beside this file.
    """
    p = how or json.loads((HERE / "export.json").read_text(encoding="utf-8"))["preprocess"]
    image, side = open_image(path, p["intensity"]), p["image_size"]
    if p.get("fit", "crop") == "pad":
        return _normalised(_padded(image, p), p)
    if p.get("fit", "crop") != "crop":
        image = image.resize((p["width"] or side, side), _FILTERS[p["interpolation"]])
        return _normalised(image, p)
    shorter, target = min(image.size), max(p["resize"], side)
    width, height = (max(side, int(length * target / shorter)) for length in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), _FILTERS[p["interpolation"]])
    left, top = round((width - side) / 2), round((height - side) / 2)
    return _normalised(image.crop((left, top, left + side, top + side)), p)


def _padded(image: Image.Image, p: dict[str, Any]) -> Image.Image:
    """The longer side resized, and bars in the mean colour that make the image square."""
    side = p["image_size"]
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if size != image.size:
        image = image.resize(size, _FILTERS[p["interpolation"]])
    mean = tuple(int(np.rint(255 * value).clip(0, 255)) for value in p["mean"])
    square = Image.new("RGB", (side, side), mean)
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _normalised(image: Image.Image, p: dict[str, Any]) -> npt.NDArray[np.float32]:
    pixels = np.asarray(image, np.float32)
    mean, std = (np.array(p[name], np.float32) * 255 for name in ("mean", "std"))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def open_image(path: str | Path, intensity: str = "image") -> Image.Image:
    """The image as upright RGB; ValueError if it cannot be read as in training."""
    rule, channels, _ = intensity.partition("@")
    with Image.open(path) as file:
        if channels or _deep_colour(path, file):
            raise ValueError(
                f"{path}: 16-bit colour and selected channels need `unfreeze predict`."
            )
        image: Image.Image = ImageOps.exif_transpose(file)
    if image.mode[0] in "IF":
        return Image.fromarray(to_uint8(np.asarray(image), rule)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _deep_colour(path: str | Path, image: Image.Image) -> bool:
    """Whether a file has colour with more than 8 bits, which Pillow reduces to 8."""
    if image.format == "PNG":
        with Path(path).open("rb") as file:
            head = file.read(26)
        return head[24] == 16 and head[25] in (2, 6)
    bits = getattr(image, "tag_v2", {}).get(_BITS, (8,))
    return len(bits) > 2 and max(bits) > 8


def to_uint8(values: npt.NDArray[Any], rule: str) -> npt.NDArray[np.uint8]:
    """16-bit or float greyscale values as uint8, scaled by the `rule` used in training."""
    numbers = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = float(finite.min()), float(finite.max())
    is_integer = np.issubdtype(values.dtype, np.integer)
    dark, bright = np.percentile(finite, (0.5, 99.5)) if rule == "percentile" else (0, 0)
    white = next(
        (float(limit) for limit in (_WHITE if is_integer else (1,)) if high <= limit), None
    )
    if ":" in rule:
        low, high = map(float, rule.split(":"))
    elif dark < bright:
        low, high = float(dark), float(bright)
    elif rule == "full" and low >= 0 and high <= (_WHITE[-1] if is_integer else 1):
        low, high = 0.0, float(_WHITE[-1] if is_integer else 1)
    elif low >= 0 and white is not None and (high >= white / 8 or high == 0):
        low, high = 0.0, white
    elif low == high:
        return np.full(values.shape, 128, np.uint8)
    numbers = np.nan_to_num(numbers, nan=low, posinf=high, neginf=low)
    scaled = np.rint((numbers - low) * (255 / (high - low))).clip(0, 255)
    return np.asarray(scaled, np.uint8)
