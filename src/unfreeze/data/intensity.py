"""Grey that is deeper than eight bits, or has a fraction: the stated rule to uint8."""

import numpy as np
import numpy.typing as npt

from unfreeze.data.undecodable import Undecodable

_WHITE = (255, 1023, 4095, 16383, 65535)  # 8, 10, 12, 14, 16 bits
_CONSTANT = 128  # a picture of one value outside every known range: mid grey, never black


def to_uint8(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """uint8 of the same shape.

    Integers of at least 0: white is the largest value of the smallest of 8, 10, 12, 14 or 16 bits
    that holds the maximum (16 bits: divided by 257). Fractions within 0..1: times 255. Everything
    else, and fractions that would come out all black though they are not, is stretched from its
    own minimum to its own maximum; what is not finite counts as the nearer end, NaN as the minimum.
    """
    whole = np.issubdtype(values.dtype, np.integer)
    numbers = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    if not np.isfinite(numbers).any():
        raise Undecodable("unreadable", "no value in it is finite")
    low = float(numbers[np.isfinite(numbers)].min())
    high = float(numbers[np.isfinite(numbers)].max())
    if whole and low >= 0 and high <= _WHITE[-1]:
        low, high = 0.0, float(next(white for white in _WHITE if high <= white))
    elif not whole and low >= 0 and high <= 1 and (high > 1 / 255 or high == 0):
        low, high = 0.0, 1.0
    elif low == high:
        return np.full(values.shape, _CONSTANT, np.uint8)
    numbers = np.nan_to_num(numbers, nan=low, posinf=high, neginf=low)
    return np.rint((numbers - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
