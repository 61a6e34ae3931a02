"""Small images to look at, decoded where nothing can go wrong for this process."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from unfreeze.data.decode import decode, shrink
from unfreeze.data.index import Index
from unfreeze.data.sources import Source
from unfreeze.data.undecodable import Undecodable
from unfreeze.data.watched import watched

SIDE = 112  # pixels of the shorter one, at most

Pixels = npt.NDArray[np.uint8]


class Thumbnailer:
    """A row's image made small, None where there is none. What processes run."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, row: int) -> Pixels | None:
        """uint8 [h, w, 3] with a shorter side of at most SIDE."""
        try:
            return shrink(decode(self.source.read(row)), SIDE)
        except (Undecodable, OSError, MemoryError):
            return None  # who trains on it hears of it


def thumbnails(index: Index, places: Collection[int]) -> dict[int, Pixels]:
    """Small images by position of the index; those that give one."""
    rows = {int(index.rows[place]): place for place in sorted(places)}
    made = watched(index.source, Thumbnailer(index.source), list(rows), workers=1)
    return {rows[row]: pixels for row, pixels in made if isinstance(pixels, np.ndarray)}
