"""Colour augmentation of crops: brightness, contrast, saturation, hue, greyscale and blur, uint8.

Each operation equals Pillow's (as used by torchvision's ColorJitter) up to rounding: brightness and
contrast are linear in each value, saturation is a 3x3 matrix, hue is shifted in 8-bit HSV.
"""

import itertools

import cv2
import numpy as np
import numpy.typing as npt

from unfreeze.data.augment.config import CropSpec

Pixels = npt.NDArray[np.uint8]
DRAWS = 9  # jitter?, brightness, contrast, saturation, hue, order, grey?, blur?, sigma
ORDERS = tuple(itertools.permutations(range(4)))
_ONES = np.eye(3)
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, as Pillow's "L"


def augment_colour(view: Pixels, draws: npt.NDArray[np.float64], spec: CropSpec) -> Pixels:
    """Colour augmentation with random numbers `draws` `[9]`, with the strengths of `spec`."""
    if draws[0] < spec.jitter:
        view = colour_jitter(view, draws[1:6], spec)
    if draws[6] < spec.grey:
        view = to_greyscale(view)
    if draws[7] < spec.blur:
        low, high = spec.sigma
        view = gaussian_blur(view, low + draws[8] * (high - low))
    return view


def colour_jitter(view: Pixels, draws: npt.NDArray[np.float64], spec: CropSpec) -> Pixels:
    """Brightness, contrast, saturation and hue in one of 24 orders; `draws` `[5]`."""
    for step in ORDERS[int(draws[4] * 24)]:
        strength = (spec.brightness, spec.contrast, spec.saturation, spec.hue)[step]
        if strength == 0:
            continue
        shift = (2 * draws[step] - 1) * strength
        view = adjust_hue(view, shift) if step == 3 else _SCALED[step](view, max(0.0, 1 + shift))
    return view


def adjust_brightness(view: Pixels, factor: float) -> Pixels:
    """Multiplies all values by `factor`."""
    return cv2.convertScaleAbs(view, alpha=factor)  # type: ignore[return-value]


def adjust_contrast(view: Pixels, factor: float) -> Pixels:
    """Multiplies the difference from the mean luminance by `factor`."""
    mean = np.floor(float(np.dot(cv2.mean(view)[:3], _LUMA)) + 0.5)
    return cv2.addWeighted(view, factor, view, 0, (1 - factor) * mean)  # type: ignore[return-value]


def adjust_saturation(view: Pixels, factor: float) -> Pixels:
    """Multiplies the difference from the luminance of the pixel by `factor`."""
    matrix = _ONES * factor + (1 - factor) * _LUMA
    return cv2.transform(view, matrix)  # type: ignore[return-value]


def adjust_hue(view: Pixels, turn: float) -> Pixels:
    """Shifts the hue by `turn` (-0.5 to 0.5), in steps of 1/255 as torchvision does."""
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(turn * 255) % 256)  # 256 steps: uint8 wraps around
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)  # type: ignore[return-value]


def to_greyscale(view: Pixels) -> Pixels:
    """The luminance in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)  # type: ignore[return-value]


def gaussian_blur(view: Pixels, sigma: float) -> Pixels:
    """Gaussian blur, `sigma` in pixels; edges are repeated."""
    width = 2 * max(1, round(3 * sigma)) + 1
    kernel = cv2.getGaussianKernel(width, sigma, cv2.CV_32F)
    # three times as fast as GaussianBlur, which uses 16-bit fixed point
    return cv2.sepFilter2D(view, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)  # type: ignore[return-value]


_SCALED = (adjust_brightness, adjust_contrast, adjust_saturation)
