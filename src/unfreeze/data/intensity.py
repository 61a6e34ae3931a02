"""Values deeper than eight bits, or with a fraction: the stated rule that makes them uint8."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from unfreeze.data.undecodable import Undecodable
from unfreeze.errors import UsageError

_WHITE = (255, 1023, 4095, 16383, 65535)  # 8, 10, 12, 14, 16 bits
_DARK = 1 / 8  # of white: what stays below it all over is stretched
_FULL = 65535
_COUNTS = (1, 3)  # of channels that make a picture
_PERCENTILES = (0.5, 99.5)
RANGES = ("auto", "full", "percentile")
_CONSTANT = 128  # a picture of one value outside every known range: mid grey, never black


def reading(rule: str | None, channels: Sequence[int] | None, otherwise: str = "auto") -> str:
    """The rule and the channels in one word, as a model keeps it: `percentile@3,2,1`.

    What is None comes from `otherwise`, another such word.
    """
    usual, usually = parsed(otherwise)
    chosen = channels or usually
    if chosen and len(chosen) not in _COUNTS:
        raise UsageError(f"--channels takes one number or three, not {len(chosen)}.")
    return (rule or usual) + (f"@{','.join(map(str, chosen))}" if chosen else "")


def parsed(word: str) -> tuple[str, tuple[int, ...] | None]:
    """(the rule, the channels) of such a word; ValueError where it is none."""
    rule, sign, said = word.partition("@")
    channels = tuple(int(number) for number in said.split(",")) if sign else None
    known = rule in RANGES and (
        channels is None or (len(channels) in _COUNTS and min(channels) >= 0)
    )
    if not known:
        raise ValueError(f"{word!r} says no range and channels")
    return rule, channels


def to_uint8(values: npt.NDArray[np.generic], how: str = "auto") -> npt.NDArray[np.uint8]:
    """uint8 of the same shape, by the rule `how`.

    `full`: black is 0 and white is 65535 for integers, 1 for fractions, whatever the picture
    holds; a picture that goes beyond is treated as in `auto`. `percentile`: black and white are
    the 0.5th and the 99.5th percentile of the picture's own values; where they are the same, as in
    `auto`.

    `auto`, integers of at least 0: white is the largest value of the smallest of 8, 10, 12, 14 or
    16 bits that holds the maximum (16 bits: divided by 257). Fractions within 0..1: white is 1.
    Everything else, and what would nowhere reach an eighth of white though it is not all 0, is
    stretched from its own minimum to its own maximum. What is not finite counts as the nearer
    end, NaN as the minimum.
    """
    numbers = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        raise Undecodable("unreadable", "no value in it is finite")
    low, high = float(finite.min()), float(finite.max())
    whole = np.issubdtype(values.dtype, np.integer)
    dark, bright = np.percentile(finite, _PERCENTILES).tolist() if how == "percentile" else (0, 0)
    white = _white(high, whole=whole)
    if dark < bright:
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
