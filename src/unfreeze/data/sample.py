"""A few images of a dataset looked at before any plan: their sizes, and their deep values."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unfreeze.data.dataset_warnings import Cropped, cropped_away
from unfreeze.data.decode import header_size
from unfreeze.data.index import Index
from unfreeze.data.intensity import Extent, beyond, extent, one_range, parsed
from unfreeze.data.stored import deep_values
from unfreeze.data.undecodable import Undecodable
from unfreeze.errors import DataError

HEADERS = 200  # files whose headers are read
DEEP = 48  # of these, images whose values are read


@dataclass(frozen=True)
class Sampled:
    """What some images of a dataset of `images` are like.

    `heights`, `widths`: pixels, as their headers say. `extents`: of those with more than 8 bits.
    """

    images: int
    heights: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]
    extents: tuple[Extent, ...]

    @property
    def side(self) -> int:
        """The median of the shorter sides."""
        return int(np.median(np.minimum(self.heights, self.widths)))

    @property
    def cropped(self) -> Cropped | None:
        """Those so long that a square in the middle shows less than half of them."""
        return cropped_away(self.heights, self.widths, of=self.images)

    def intensity(self, word: str) -> tuple[str, str | None]:
        """(how deep values are read, the reason) where `word`, as in `reading`, is asked for.

        `auto` becomes one range for the whole dataset where there are deep images. No reason where
        there is nothing to say.
        """
        rule, sign, channels = word.partition("@")
        if not self.extents:
            return word, None
        if rule == "auto":
            rule, reason = one_range(self.extents)
            return f"{rule}{sign}{channels}", reason
        cut = beyond(rule, self.extents)
        where = f"{len(self.extents):,} sampled high-bit-depth images"
        return word, f"set by --range or the weights; {cut:,} of {where} exceed it"


def sampled(index: Index, positions: npt.NDArray[np.int64], intensity: str = "auto") -> Sampled:
    """As `looked_at`; DataError where no header is readable."""
    found = looked_at(index, positions, intensity)
    if not len(found.heights):
        raise DataError(
            f"None of the sampled files in {index.source.where} is a readable image.",
            "Check that the files are complete images.",
        )
    return found


def looked_at(index: Index, positions: npt.NDArray[np.int64], intensity: str = "auto") -> Sampled:
    """Headers and deep values of images at these positions, evenly spread over them.

    `intensity` says which channels count.
    """
    channels = parsed(intensity)[1]
    chosen = positions[:: max(1, len(positions) // HEADERS)]
    values = {*chosen[:: max(1, len(chosen) // DEEP)].tolist()}
    sizes, extents = list[tuple[int, int]](), list[Extent]()
    for position in chosen.tolist():
        try:
            data = index.source.read(int(index.rows[position]))
            if not isinstance(data, bytes):
                sizes.append((data.shape[0], data.shape[1]))
                continue
            sizes.append(header_size(data))
            found = deep_values(data, channels) if position in values else None
        except (OSError, Undecodable):
            continue  # the check names it with its reason
        if found is not None and (one := extent(found)) is not None:
            extents.append(one)
    heights, widths = np.array(sizes, np.int64).reshape(-1, 2).T
    return Sampled(len(positions), heights, widths, tuple(extents))
