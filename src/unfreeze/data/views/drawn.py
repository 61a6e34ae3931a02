"""What was drawn for the views of a batch, in numbers that a device can take in one piece.

The draws are those of `make_views`: keyed by (seed, epoch, id, view) and by nothing else.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from unfreeze.data.views import colour, geometry
from unfreeze.data.views.draws import uniforms
from unfreeze.data.views.spec import ViewSpec

Floats = npt.NDArray[np.float64]
DRAWS = geometry.DRAWS + colour.DRAWS + 2  # flip?, turn
RADIUS = 6  # of the widest blur, sigma 2
TAPS = 2 * RADIUS + 1
# name -> number of columns
_COLUMNS = {
    "box": 4,  # top, left, height, width
    "sides": 2,  # of the image
    "flip": 1,
    "angle": 1,  # radians
    "jitter": 1,
    "factors": 3,  # brightness, contrast, saturation
    "hue": 1,  # of 256
    "order": 4,
    "grey": 1,
    "blur": 1,
    "taps": TAPS,
}
_FLAGS = ("flip", "jitter", "grey", "blur")


class Drawn:
    """One row a image: `drawn["box"]` is `[B, 4]`, what has one column `[B]`; flags are bool."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    def __getitem__(self, name: str) -> torch.Tensor:
        names = list(_COLUMNS)
        first = sum(_COLUMNS[before] for before in names[: names.index(name)])
        part = self.table[:, first : first + _COLUMNS[name]]
        part = part[:, 0] if _COLUMNS[name] == 1 else part
        return part > 0.5 if name in _FLAGS else part


def table(
    sides: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    epoch: int,
    seed: int,
    views: Sequence[tuple[int, ViewSpec]],
) -> npt.NDArray[np.float32]:
    """`[views * B, columns]` for (number, spec) of each view and images of `sides` `[B, 2]`."""
    parts = []
    for number, spec in views:
        draws = uniforms(seed, epoch, ids, number, DRAWS)
        where = geometry.boxes(sides, draws, spec)
        parts.append(_one(sides, where, draws[:, geometry.DRAWS :], spec))
    return np.concatenate(parts).astype(np.float32)


def _one(
    sides: npt.NDArray[np.int64], where: npt.NDArray[np.int64], draws: Floats, spec: ViewSpec
) -> Floats:
    flip, turn, colours = draws[:, 0], draws[:, 1], draws[:, 2:]
    strengths = (spec.brightness, spec.contrast, spec.saturation, spec.hue)
    shifts = (2 * colours[:, 1:5] - 1) * strengths
    low, high = spec.sigma
    found = {
        "box": where,
        "sides": sides,
        "flip": flip < spec.flip,
        "angle": np.deg2rad((2 * turn - 1) * spec.degrees),
        "jitter": colours[:, 0] < spec.jitter,
        "factors": np.maximum(0.0, 1 + shifts[:, :3]),
        "hue": (shifts[:, 3] * 255).astype(np.int64) % 256,  # towards zero, as int() does
        "order": _ORDERS[(colours[:, 5] * 24).astype(np.int64)],
        "grey": colours[:, 6] < spec.grey,
        "blur": colours[:, 7] < spec.blur,
        "taps": _gaussian(low + colours[:, 8] * (high - low)),
    }
    return np.concatenate([found[n].reshape(len(sides), -1) for n in _COLUMNS], axis=1)


_ORDERS = np.array(colour.ORDERS)


def _gaussian(sigma: Floats) -> Floats:
    """`[B, TAPS]` weights of a blur by `sigma` `[B]` pixels, as wide as `colour.blur` makes it."""
    away = np.abs(np.arange(TAPS) - RADIUS)[None]
    radius = np.maximum(1, np.rint(3 * sigma))[:, None]
    weights = np.where(away <= radius, np.exp(-(away**2) / (2 * sigma[:, None] ** 2)), 0.0)
    normed: Floats = weights / weights.sum(1, keepdims=True)
    return normed
