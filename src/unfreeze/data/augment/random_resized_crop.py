"""Crop boxes and their resizing.

Boxes are those of torchvision's RandomResizedCrop (ten tries, else a central crop). Pixels are
those of Pillow's bilinear filter: antialiased if the crop shrinks.
"""

import cv2
import numpy as np
import numpy.typing as npt
import torch

from unfreeze.data.augment.config import CropSpec

Pixels = npt.NDArray[np.uint8]
TRIES = 10
DRAWS = 2 * TRIES + 2  # area and ratio of each try, top, left


def random_boxes(
    sides: npt.NDArray[np.int64], draws: npt.NDArray[np.float64], spec: CropSpec
) -> npt.NDArray[np.int64]:
    """Random boxes `[B, 4]` (top, left, height, width) in images of `sides` `[B, 2]` (H, W)."""
    height, width = sides[:, :1], sides[:, 1:]
    low, high = spec.scale
    area = height * width * (low + draws[:, :TRIES] * (high - low))
    log_low, log_high = np.log(spec.ratio[0]), np.log(spec.ratio[1])
    ratio = np.exp(log_low + draws[:, TRIES : 2 * TRIES] * (log_high - log_low))
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(1)
    rows = np.arange(len(sides))
    size = np.stack([h[rows, first], w[rows, first]], 1)
    central = ~fits.any(1)
    size[central] = _central(sides[central], spec.ratio)
    margin = sides - size
    corner = np.floor(draws[:, 2 * TRIES : DRAWS] * (margin + 1)).astype(np.int64)
    corner[central] = margin[central] // 2
    return np.concatenate([corner, size], 1)


def _central(sides: npt.NDArray[np.int64], ratio: tuple[float, float]) -> npt.NDArray[np.int64]:
    height, width = sides[:, 0], sides[:, 1]
    w = np.where(width > height * ratio[1], np.rint(height * ratio[1]), width)
    h = np.where(width < height * ratio[0], np.rint(width / ratio[0]), height)
    return np.maximum(np.stack([h, w], 1).astype(np.int64), 1)


def resized_crop(image: Pixels, box: npt.NDArray[np.int64], size: int | tuple[int, int]) -> Pixels:
    """The box of `image` `[H, W, 3]`, resized to `[size, size, 3]`, or to (height, width)."""
    top, left, height, width = (int(v) for v in box)
    high, wide = (size, size) if isinstance(size, int) else size
    crop = image[top : top + height, left : left + width]
    if height <= high and width <= wide:
        return cv2.resize(crop, (wide, high), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]
    # a contiguous copy lets torch use its channels-last kernel
    pixels = torch.from_numpy(crop.copy())[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        pixels, size=(high, wide), mode="bilinear", antialias=True
    )
    view: Pixels = np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
    return view


def rotated_crop(image: Pixels, box: npt.NDArray[np.int64], size: int, degrees: float) -> Pixels:
    """As `resized_crop`, with the box rotated about its centre; edges are repeated."""
    top, left, height, width = (float(v) for v in box)
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    across, down = width / size, height / size
    matrix = np.array([[cos * across, -sin * down, 0.0], [sin * across, cos * down, 0.0]])
    middle = (size - 1) / 2
    centre = np.array([left + (width - 1) / 2, top + (height - 1) / 2])
    matrix[:, 2] = centre - matrix[:, :2] @ np.array([middle, middle])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(  # type: ignore[return-value]
        image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
