"""Conversion of high-bit-depth and floating-point images to uint8, by a named rule."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.images.errors import Undecodable
from unfreeze.errors import UsageError

_WHITE = (255, 1023, 4095, 16383, 65535)  # 8, 10, 12, 14, 16 bits
_DARK = 1 / 8  # of white: images that never exceed it are stretched
_FULL = 65535
_COUNTS = (1, 3)  # allowed numbers of selected channels
_PERCENTILES = (0.5, 99.5)
RANGES = ("auto", "image", "full", "percentile")  # `auto`: undecided, treated as `image`
_HOT = 99.9  # percentile above which values are outliers
_SPAN = 1 / 8  # of a shared range: least share of it that half of the images must span
_REACH = 1 / 3  # least share of images that must reach an eighth of white
_CONSTANT = 128  # value for constant images outside every known range: mid grey


def format_intensity(
    rule: str | None, channels: Sequence[int] | None, otherwise: str = "auto"
) -> str:
    """The rule and channels as one string, as stored with a model: `0:4095@3,2,1`.

    None is replaced by the value in `otherwise`, another such string. UsageError if invalid.
    """
    default_rule, default_channels = parse_intensity(otherwise)
    selected = channels or default_channels
    if rule is not None and ":" in rule and parse_range(rule) is None:
        raise UsageError(f"--range {rule}: LOW must be less than HIGH.")
    if selected and len(selected) not in _COUNTS:
        raise UsageError(f"--channels takes one or three numbers, not {len(selected)}.")
    return (rule or default_rule) + (f"@{','.join(map(str, selected))}" if selected else "")


def parse_intensity(word: str) -> tuple[str, tuple[int, ...] | None]:
    """(rule, channels) of a string from `format_intensity`; ValueError if it is invalid."""
    rule, separator, numbers = word.partition("@")
    channels = tuple(int(number) for number in numbers.split(",")) if separator else None
    valid = (rule in RANGES or parse_range(rule) is not None) and (
        channels is None or (len(channels) in _COUNTS and min(channels) >= 0)
    )
    if not valid:
        raise ValueError(f"{word!r} is not a valid range and channels")
    return rule, channels


def parse_range(rule: str) -> tuple[float, float] | None:
    """(black, white) of a rule like `0:4095`; None for other rules and invalid ranges."""
    low, separator, high = rule.partition(":")
    try:
        limits = float(low), float(high)
    except ValueError:
        return None
    return (
        limits
        if separator and math.isfinite(limits[1] - limits[0]) and limits[0] < limits[1]
        else None
    )


def to_uint8(values: npt.NDArray[np.generic], how: str = "auto") -> npt.NDArray[np.uint8]:
    """Converts values to uint8 of the same shape by the rule `how`.

    `LOW:HIGH`: black and white; values outside are clipped.

    `full`: black is 0, white is 65535 for integers and 1 for floats; images with values outside are
    treated as in `image`. `percentile`: black and white are the 0.5th and the 99.5th percentile of
    the image; if they are equal, as in `image`.

    `image` (and `auto`): black is 0; white is 1 for floats in 0..1, and for non-negative integers
    the largest value of the smallest of 8, 10, 12, 14 or 16 bits that contains the maximum. Other
    images, and those that are not all 0 but never reach an eighth of white, are stretched from
    their minimum to their maximum. Infinite values are clipped, NaN becomes the minimum.
    """
    numbers = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        raise Undecodable("unreadable", "it contains no finite values")
    low, high = float(finite.min()), float(finite.max())
    is_integer = np.issubdtype(values.dtype, np.integer)
    dark, bright = np.percentile(finite, _PERCENTILES).tolist() if how == "percentile" else (0, 0)
    white = _white(high, is_integer=is_integer)
    if (limits := parse_range(how)) is not None:
        low, high = limits
    elif dark < bright:
        low, high = dark, bright
    elif how == "full" and low >= 0 and high <= (_FULL if is_integer else 1):
        low, high = 0.0, float(_FULL if is_integer else 1)
    elif low >= 0 and white is not None and (high >= white * _DARK or high == 0):
        low, high = 0.0, white
    elif low == high:
        return np.full(values.shape, _CONSTANT, np.uint8)
    numbers = np.nan_to_num(numbers, nan=low, posinf=high, neginf=low)
    scaled = np.rint((numbers - low) * (255 / (high - low)))
    return np.asarray(scaled.clip(0, 255), np.uint8)


def _white(high: float, *, is_integer: bool) -> float | None:
    """The value of white for a maximum of `high`, or None above every known range."""
    known = _WHITE if is_integer else (1,)
    return next((float(white) for white in known if high <= white), None)


class ValueRange(NamedTuple):
    """Range of the values of one image; `whole`: integers.

    `low` and `high` are the 0.1th and the 99.9th percentile, to ignore hot pixels.
    """

    whole: bool
    low: float
    high: float


def extent(values: npt.NDArray[np.generic]) -> ValueRange | None:
    """The range of the values of an image; None if none are finite."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return None
    low, high = np.percentile(finite, [100 - _HOT, _HOT]).tolist()
    return ValueRange(bool(np.issubdtype(values.dtype, np.integer)), low, high)


def shared_range(extents: Sequence[ValueRange]) -> tuple[str, str]:
    """(the rule for all images of a dataset, the reason) from the ranges of a sample.

    Non-negative integers: black is 0, and white is the largest value of the bit depth, if a third
    of the images reach an eighth of it; floats in 0..1 likewise. Else from the smallest to the
    largest value, if half of the images span an eighth of that. Else each image by its own range,
    which removes differences in brightness between images.
    """
    low = min(item.low for item in extents)
    high = max(item.high for item in extents)
    all_integers = all(item.whole for item in extents)
    span = f"{low:.0f} to {high:.0f}" if all_integers else f"{low:.6g} to {high:.6g}"
    sampled = f"{len(extents):,} sampled high-bit-depth images span {span}"
    white = _white(high, is_integer=all_integers) if low >= 0 else None
    if (
        white is not None
        and _share_of_true(item.high >= white * _DARK for item in extents) >= _REACH
    ):
        depth = f"{int(white).bit_length()} bits" if white > 1 else "0 to 1"
        return f"0:{white:.6g}", f"one range for all images ({depth}): {sampled}"
    fill = _share_of_true(item.high - item.low >= _SPAN * (high - low) for item in extents)
    if low < high and fill >= 1 / 2:
        return f"{low:.6g}:{high:.6g}", f"one range for all images: {sampled}"
    return "image", (
        f"each image scaled by its own values, because they differ too much ({sampled}): "
        "classes that differ only in brightness become indistinguishable; --range LOW:HIGH sets "
        "one range"
    )


def count_clipped(rule: str, extents: Sequence[ValueRange]) -> int:
    """How many of these images have values that a fixed range clips."""
    limits = parse_range(rule)
    if limits is None:
        return 0
    return sum(item.low < limits[0] or item.high > limits[1] for item in extents)


def _share_of_true(flags: Iterable[bool]) -> float:
    return float(np.mean([*flags]))
