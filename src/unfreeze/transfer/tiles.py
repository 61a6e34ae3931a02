"""Maps of large images from overlapping tiles, with blended logits."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfreeze.tasks.segmentation.crops import mirrored

Pixels = npt.NDArray[np.uint8]
OVERLAP = 0.25  # of a tile's side, at least
BATCH = 8  # tiles at once


def tile_starts(length: int, tile: int) -> list[int]:
    """First positions of the tiles along a side: evenly spread, overlapping by OVERLAP or more."""
    if length <= tile:
        return [0]
    step = max(1, round(tile * (1 - OVERLAP)))
    count = -(-(length - tile) // step) + 1
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def tiled_maps(
    forward: Callable[[Tensor], Tensor], image: Pixels, shape: tuple[int, int]
) -> Tensor:
    """Logits [1, C, H, W] on the CPU of an image [H, W, 3], from tiles of `shape` (height, width).

    `forward` maps uint8 [B, h, w, 3] to logits [B, C, h, w]. Where tiles overlap, their logits are
    averaged with weights that fall towards a tile's border. A smaller image is mirrored at its
    right and lower border, and the logits are cut back.
    """
    height, width = image.shape[:2]
    padded = mirrored(image, shape)
    corners = [
        (top, left)
        for top in tile_starts(padded.shape[0], shape[0])
        for left in tile_starts(padded.shape[1], shape[1])
    ]
    weight = torch.outer(_ramp(shape[0]), _ramp(shape[1]))
    total: Tensor | None = None
    weights = torch.zeros(padded.shape[:2])
    for first in range(0, len(corners), BATCH):
        some = corners[first : first + BATCH]
        tiles = np.stack([padded[t : t + shape[0], w : w + shape[1]] for t, w in some])
        maps = forward(torch.from_numpy(tiles)).float().cpu()
        if total is None:
            total = torch.zeros(maps.shape[1], *padded.shape[:2])
        for (top, left), logits in zip(some, maps, strict=True):
            region = slice(top, top + shape[0]), slice(left, left + shape[1])
            total[:, *region] += logits * weight
            weights[region] += weight
    if total is None:
        raise RuntimeError("an image has at least one tile")
    return (total / weights)[None, :, :height, :width]


def _ramp(size: int) -> Tensor:
    """Weights [size], 1 in the middle and towards 0 at both ends."""
    position = (torch.arange(size) + 0.5) / size
    return torch.minimum(position, 1 - position) * 2
