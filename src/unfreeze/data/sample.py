"""Statistics of a sample of images, read before a run is planned: sizes and value ranges."""

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

HEADERS = 200  # number of headers to read
DEEP = 48  # number of images of them whose values are read


@dataclass(frozen=True)
class Sampled:
    """Statistics of a sample from a dataset of `images` images.

    `heights`, `widths`: in pixels, from the headers. `extents`: value ranges of images with more
    than 8 bits per channel.
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
        """Images of which a centre crop shows less than half; None if there are none."""
        return cropped_away(self.heights, self.widths, of=self.images)

    def intensity(self, word: str) -> tuple[str, str | None]:
        """(the intensity rule to use, the reason or None) for the requested rule `word`.

        `word` is a string from `reading`. `auto` becomes one range for the whole dataset if it has
        high-bit-depth images.
        """
        rule, separator, channels = word.partition("@")
        if not self.extents:
            return word, None
        if rule == "auto":
            rule, reason = one_range(self.extents)
            return f"{rule}{separator}{channels}", reason
        clipped = beyond(rule, self.extents)
        sampled = f"{len(self.extents):,} sampled high-bit-depth images"
        return word, f"set by --range or the weights; {clipped:,} of {sampled} exceed it"


def sampled(index: Index, positions: npt.NDArray[np.int64], intensity: str = "auto") -> Sampled:
    """`looked_at`; DataError if no header is readable."""
    sample = looked_at(index, positions, intensity)
    if not len(sample.heights):
        raise DataError(
            f"None of the sampled files in {index.source.where} is a readable image.",
            "Check that the files are complete images.",
        )
    return sample


def looked_at(index: Index, positions: npt.NDArray[np.int64], intensity: str = "auto") -> Sampled:
    """Sizes and value ranges of images evenly spread over these positions.

    `intensity`: a string from `reading`, for its channels.
    """
    channels = parsed(intensity)[1]
    selected = positions[:: max(1, len(positions) // HEADERS)]
    read_values = {*selected[:: max(1, len(selected) // DEEP)].tolist()}
    sizes, extents = list[tuple[int, int]](), list[Extent]()
    for position in selected.tolist():
        try:
            data = index.source.read(int(index.rows[position]))
            if not isinstance(data, bytes):
                sizes.append((data.shape[0], data.shape[1]))
                continue
            sizes.append(header_size(data))
            values = deep_values(data, channels) if position in read_values else None
        except (OSError, Undecodable):
            continue  # the full check reports it with a reason
        if values is not None and (value_range := extent(values)) is not None:
            extents.append(value_range)
    heights, widths = np.array(sizes, np.int64).reshape(-1, 2).T
    return Sampled(len(positions), heights, widths, tuple(extents))
