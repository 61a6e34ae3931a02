"""Values deeper than eight bits, or with a fraction: the stated rule that makes them uint8."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.undecodable import Undecodable
from unfreeze.errors import UsageError

_WHITE = (255, 1023, 4095, 16383, 65535)  # 8, 10, 12, 14, 16 bits
_DARK = 1 / 8  # of white: what stays below it all over is stretched
_FULL = 65535
_COUNTS = (1, 3)  # of channels that make an image
_PERCENTILES = (0.5, 99.5)
RANGES = ("auto", "image", "full", "percentile")  # `auto`: not decided yet, read as `image`
_HOT = 99.9  # percentile above which values are single pixels
_SPAN = 1 / 8  # of one range for all, that half of the images must fill
_REACH = 1 / 3  # of the images that must reach an eighth of white
_CONSTANT = 128  # an image of one value outside every known range: mid grey, never black


def reading(rule: str | None, channels: Sequence[int] | None, otherwise: str = "auto") -> str:
    """The rule and the channels in one word, as a model keeps it: `0:4095@3,2,1`.

    What is None comes from `otherwise`, another such word.
    """
    usual, usually = parsed(otherwise)
    chosen = channels or usually
    if rule is not None and ":" in rule and fixed(rule) is None:
        raise UsageError(f"--range {rule}: LOW must be less than HIGH.")
    if chosen and len(chosen) not in _COUNTS:
        raise UsageError(f"--channels takes one or three numbers, not {len(chosen)}.")
    return (rule or usual) + (f"@{','.join(map(str, chosen))}" if chosen else "")


def parsed(word: str) -> tuple[str, tuple[int, ...] | None]:
    """(the rule, the channels) of such a word; ValueError where it is none."""
    rule, sign, said = word.partition("@")
    channels = tuple(int(number) for number in said.split(",")) if sign else None
    known = (rule in RANGES or fixed(rule) is not None) and (
        channels is None or (len(channels) in _COUNTS and min(channels) >= 0)
    )
    if not known:
        raise ValueError(f"{word!r} is not a valid range and channels")
    return rule, channels


def fixed(rule: str) -> tuple[float, float] | None:
    """(black, white) of a rule like `0:4095`; None for other rules, and where it is no range."""
    low, sign, high = rule.partition(":")
    try:
        limits = float(low), float(high)
    except ValueError:
        return None
    return (
        limits if sign and math.isfinite(limits[1] - limits[0]) and limits[0] < limits[1] else None
    )


def to_uint8(values: npt.NDArray[np.generic], how: str = "auto") -> npt.NDArray[np.uint8]:
    """uint8 of the same shape, by the rule `how`.

    `LOW:HIGH`: these are black and white, and what lies beyond them is cut off.

    `full`: black is 0 and white is 65535 for integers, 1 for fractions, whatever the image
    holds; an image that goes beyond is treated as in `image`. `percentile`: black and white are
    the 0.5th and the 99.5th percentile of the image's own values; where they are the same, as in
    `image`.

    `image` (and `auto`), integers of at least 0: white is the largest value of the smallest of 8,
    10, 12, 14 or 16 bits that holds the maximum (16 bits: divided by 257). Fractions within 0..1:
    white is 1.
    Everything else, and what would nowhere reach an eighth of white though it is not all 0, is
    stretched from its own minimum to its own maximum. What is not finite counts as the nearer
    end, NaN as the minimum.
    """
    numbers = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        raise Undecodable("unreadable", "it contains no finite values")
    low, high = float(finite.min()), float(finite.max())
    whole = np.issubdtype(values.dtype, np.integer)
    dark, bright = np.percentile(finite, _PERCENTILES).tolist() if how == "percentile" else (0, 0)
    white = _white(high, whole=whole)
    if (limits := fixed(how)) is not None:
        low, high = limits
    elif dark < bright:
        low, high = dark, bright
    elif how == "full" and low >= 0 and high <= (_FULL if whole else 1):
        low, high = 0.0, float(_FULL if whole else 1)
    elif low >= 0 and white is not None and (high >= white * _DARK or high == 0):
        low, high = 0.0, white
    elif low == high:
        return np.full(values.shape, _CONSTANT, np.uint8)
    numbers = np.nan_to_num(numbers, nan=low, posinf=high, neginf=low)
    scaled = np.rint((numbers - low) * (255 / (high - low)))
    return np.asarray(scaled.clip(0, 255), np.uint8)


def _white(high: float, *, whole: bool) -> float | None:
    """The value that means white, or None where the range is none that is known."""
    known = _WHITE if whole else (1,)
    return next((float(white) for white in known if high <= white), None)


class Extent(NamedTuple):
    """What one image's deep values are: `whole` numbers or fractions, and from where to where.

    `low` and `high` leave single pixels out: one hot pixel says nothing about the others.
    """

    whole: bool
    low: float
    high: float


def extent(values: npt.NDArray[np.generic]) -> Extent | None:
    """The extent of an image's values; None where none is finite."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return None
    low, high = np.percentile(finite, [100 - _HOT, _HOT]).tolist()
    return Extent(bool(np.issubdtype(values.dtype, np.integer)), low, high)


def one_range(extents: Sequence[Extent]) -> tuple[str, str]:
    """(the rule for all images of a dataset, the reason) by the extents of some of its deep images.

    Whole numbers of at least 0: black is 0 and white the largest value of the bits that hold them,
    where a third of the images reach an eighth of it; fractions within 0..1 likewise. Else from the
    smallest to the largest of their values, where half of the images fill an eighth of that. Else
    each image by itself, which erases what images differ in by brightness alone.
    """
    low = min(one.low for one in extents)
    high = max(one.high for one in extents)
    whole = all(one.whole for one in extents)
    span = f"{low:.0f} to {high:.0f}" if whole else f"{low:.6g} to {high:.6g}"
    seen = f"{len(extents):,} sampled high-bit-depth images span {span}"
    white = _white(high, whole=whole) if low >= 0 else None
    if white is not None and _share(one.high >= white * _DARK for one in extents) >= _REACH:
        what = f"{int(white).bit_length()} bits" if white > 1 else "0 to 1"
        return f"0:{white:.6g}", f"one range for all images ({what}): {seen}"
    fill = _share(one.high - one.low >= _SPAN * (high - low) for one in extents)
    if low < high and fill >= 1 / 2:
        return f"{low:.6g}:{high:.6g}", f"one range for all images: {seen}"
    return "image", (
        f"each image scaled by its own values, because they differ too much ({seen}): classes that "
        "differ only in brightness become indistinguishable; --range LOW:HIGH sets one range"
    )


def beyond(rule: str, extents: Sequence[Extent]) -> int:
    """How many of these images a fixed range cuts off."""
    limits = fixed(rule)
    if limits is None:
        return 0
    return sum(one.low < limits[0] or one.high > limits[1] for one in extents)


def _share(found: Iterable[bool]) -> float:
    return float(np.mean([*found]))
