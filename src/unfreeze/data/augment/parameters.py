"""Random augmentation parameters of a batch, as one table that is copied to the device.

The random numbers are those of `make_views`: determined by (seed, epoch, id, view) only.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from unfreeze.data.augment import color, random_resized_crop
from unfreeze.data.augment.config import CropSpec

U64 = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def uniforms(
    seed: int, epoch: int, ids: Sequence[int | str] | npt.NDArray[np.int64], view: int, count: int
) -> npt.NDArray[np.float64]:
    """Uniform random numbers `[B, count]` in [0, 1), float64; row b depends on `ids[b]` only."""
    key = _mix(np.array([seed & _MASK], np.uint64) + _GOLDEN)
    for part in (epoch, view):
        key = _mix(key ^ _mix(np.array([part & _MASK], np.uint64) + _GOLDEN))
    streams = _mix(key ^ _mix(_numbers(ids) + _GOLDEN))
    counters = streams[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    return (_mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(
    seed: int, epoch: int, ids: npt.NDArray[np.int64], stream: int = -1
) -> npt.NDArray[np.int64]:
    """`ids` in a random order, determined by seed and epoch."""
    keys = uniforms(seed, epoch, ids, stream, 1)[:, 0]
    return ids[np.argsort(keys, kind="stable")]


def _numbers(ids: Sequence[int | str] | npt.NDArray[np.int64]) -> U64:
    if isinstance(ids, np.ndarray):
        return ids.astype(np.int64).view(np.uint64)
    return np.array([_number(i) for i in ids], np.uint64)


def _number(name: int | str) -> int:
    if isinstance(name, str):
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return int(name) & _MASK


def _mix(z: U64) -> U64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


Floats = npt.NDArray[np.float64]
DRAWS = random_resized_crop.DRAWS + color.DRAWS + 2  # flip?, rotation
RADIUS = 6  # of the widest blur, sigma 2
TAPS = 2 * RADIUS + 1
# number of columns by name
_COLUMNS = {
    "box": 4,  # top, left, height, width
    "sides": 2,  # of the image: height, width
    "flip": 1,
    "angle": 1,  # radians
    "jitter": 1,
    "factors": 3,  # brightness, contrast, saturation
    "hue": 1,  # shift, 0 to 255
    "order": 4,
    "grey": 1,
    "blur": 1,
    "taps": TAPS,
}
_FLAGS = ("flip", "jitter", "grey", "blur")


class CropParameters:
    """One row per image: `drawn["box"]` is `[B, 4]`, single columns are `[B]`; flags are bool."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    def __getitem__(self, name: str) -> torch.Tensor:
        names = list(_COLUMNS)
        first = sum(_COLUMNS[previous] for previous in names[: names.index(name)])
        part = self.table[:, first : first + _COLUMNS[name]]
        part = part[:, 0] if _COLUMNS[name] == 1 else part
        return part > 0.5 if name in _FLAGS else part


def parameter_table(
    sides: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    epoch: int,
    seed: int,
    views: Sequence[tuple[int, CropSpec]],
) -> npt.NDArray[np.float32]:
    """The table `[len(views) * B, columns]`; `views`: (number, spec), `sides`: `[B, 2]` (H, W)."""
    parts = []
    for number, spec in views:
        draws = uniforms(seed, epoch, ids, number, DRAWS)
        boxes = random_resized_crop.random_boxes(sides, draws, spec)
        parts.append(_rows(sides, boxes, draws[:, random_resized_crop.DRAWS :], spec))
    return np.concatenate(parts).astype(np.float32)


def _rows(
    sides: npt.NDArray[np.int64], boxes: npt.NDArray[np.int64], draws: Floats, spec: CropSpec
) -> Floats:
    flip, rotation, colours = draws[:, 0], draws[:, 1], draws[:, 2:]
    strengths = (spec.brightness, spec.contrast, spec.saturation, spec.hue)
    shifts = (2 * colours[:, 1:5] - 1) * strengths
    low, high = spec.sigma
    columns = {
        "box": boxes,
        "sides": sides,
        "flip": flip < spec.flip,
        "angle": np.deg2rad((2 * rotation - 1) * spec.degrees),
        "jitter": colours[:, 0] < spec.jitter,
        "factors": np.maximum(0.0, 1 + shifts[:, :3]),
        "hue": (shifts[:, 3] * 255).astype(np.int64) % 256,  # rounds towards zero, as int()
        "order": _ORDERS[(colours[:, 5] * 24).astype(np.int64)],
        "grey": colours[:, 6] < spec.grey,
        "blur": colours[:, 7] < spec.blur,
        "taps": _gaussian(low + colours[:, 8] * (high - low)),
    }
    return np.concatenate([columns[name].reshape(len(sides), -1) for name in _COLUMNS], axis=1)


_ORDERS = np.array(color.ORDERS)


def _gaussian(sigma: Floats) -> Floats:
    """`[B, TAPS]`: Gaussian kernels of `sigma` `[B]` pixels, as wide as those of `colour.blur`."""
    distance = np.abs(np.arange(TAPS) - RADIUS)[None]
    radius = np.maximum(1, np.rint(3 * sigma))[:, None]
    weights = np.where(distance <= radius, np.exp(-(distance**2) / (2 * sigma[:, None] ** 2)), 0.0)
    normalised: Floats = weights / weights.sum(1, keepdims=True)
    return normalised
