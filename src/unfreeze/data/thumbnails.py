"""Thumbnails for reports, decoded in a worker process."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from unfreeze.data.decode import decode, shrink
from unfreeze.data.index import Index
from unfreeze.data.sources import Source
from unfreeze.data.undecodable import Undecodable
from unfreeze.data.watched import watched

SIDE = 112  # largest shorter side in pixels

Pixels = npt.NDArray[np.uint8]


class Thumbnailer:
    """`thumbnailer(row)`: the thumbnail of a row, or None if it is unusable; runs in a worker."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, row: int) -> Pixels | None:
        """uint8 [h, w, 3] with a shorter side of at most SIDE."""
        try:
            return shrink(decode(self.source.read(row)), SIDE)
        except (Undecodable, OSError, MemoryError):
            return None  # the check before training reports it


def thumbnails(index: Index, positions: Collection[int]) -> dict[int, Pixels]:
    """Thumbnails by position of the index, without unusable images."""
    rows = {int(index.rows[position]): position for position in sorted(positions)}
    results = watched(index.source, Thumbnailer(index.source), list(rows), workers=1)
    return {rows[row]: pixels for row, pixels in results if isinstance(pixels, np.ndarray)}
