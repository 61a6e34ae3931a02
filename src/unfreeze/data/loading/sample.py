"""Statistics of a sample of images, read before a run is planned: sizes and value ranges."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from unfreeze.data.images.decode import as_undecodable, dispatch_decoder, header_size
from unfreeze.data.images.errors import Undecodable, pillow_silenced
from unfreeze.data.images.high_bit_depth import deep_colour, is_deep, stored_values
from unfreeze.data.images.intensity import (
    ValueRange,
    count_clipped,
    extent,
    parse_intensity,
    shared_range,
)
from unfreeze.data.images.multichannel import TiffHeader, read_channels, select_channels
from unfreeze.data.index.index import Index
from unfreeze.data.validate.warnings import CroppedImages, cropped_away
from unfreeze.errors import DataError

Values = npt.NDArray[np.generic]


def deep_values(data: bytes, channels: tuple[int, ...] | None) -> Values | None:
    """The values [H, W, C] that `decode` converts to 8 bits; None for 8-bit images.

    Raises Undecodable when `decode` does.
    """

    def from_pillow(image: Image.Image) -> Values | None:
        if image.mode[0] not in "IF" and not is_deep(data):
            return None
        image.load()
        deep = deep_colour(data, image)
        return select_channels(stored_values(image) if deep is None else deep.values, channels)

    def from_tiff(header: TiffHeader) -> Values | None:
        return select_channels(read_channels(data, header, channels), None)

    with pillow_silenced(), as_undecodable(data):
        values = dispatch_decoder(data, channels, from_tiff, from_pillow)
    return None if values is None or values.dtype in (np.uint8, np.bool_) else values


HEADERS = 200  # number of headers to read
DEEP = 48  # number of images of them whose values are read


@dataclass(frozen=True)
class DatasetSample:
    """Statistics of a sample from a dataset of `images` images.

    `heights`, `widths`: in pixels, from the headers. `extents`: value ranges of images with more
    than 8 bits per channel.
    """

    images: int
    heights: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]
    extents: tuple[ValueRange, ...]

    @property
    def side(self) -> int:
        """The median of the shorter sides."""
        return int(np.median(np.minimum(self.heights, self.widths)))

    @property
    def longer_side(self) -> int:
        """The median of the longer sides."""
        return int(np.median(np.maximum(self.heights, self.widths)))

    @property
    def landscape(self) -> bool:
        """Whether most images are at least as wide as high."""
        return bool(np.median(self.widths - self.heights) >= 0)

    @property
    def cropped(self) -> CroppedImages | None:
        """Images of which a centre crop shows less than half; None if there are none."""
        return cropped_away(self.heights, self.widths, of=self.images)

    def intensity(self, word: str) -> tuple[str, str | None]:
        """(the intensity rule to use, the reason or None) for the requested rule `word`.

        `word` is a string from `format_intensity`. `auto` becomes one range for the dataset if
        it has high-bit-depth images.
        """
        rule, separator, channels = word.partition("@")
        if not self.extents:
            return word, None
        if rule == "auto":
            rule, reason = shared_range(self.extents)
            return f"{rule}{separator}{channels}", reason
        clipped = count_clipped(rule, self.extents)
        sample_dataset = f"{len(self.extents):,} sampled high-bit-depth images"
        return word, f"set by --range or the weights; {clipped:,} of {sample_dataset} exceed it"


def sample_dataset(
    index: Index, positions: npt.NDArray[np.int64], intensity: str = "auto"
) -> DatasetSample:
    """`sample_images`; DataError if no header is readable."""
    sample = sample_images(index, positions, intensity)
    if not len(sample.heights):
        raise DataError(
            f"None of the sampled files in {index.source.where} is a readable image.",
            "Check that the files are complete images.",
        )
    return sample


def sample_images(
    index: Index, positions: npt.NDArray[np.int64], intensity: str = "auto"
) -> DatasetSample:
    """Sizes and value ranges of images evenly spread over these positions.

    `intensity`: a string from `format_intensity`, for its channels.
    """
    channels = parse_intensity(intensity)[1]
    selected = positions[:: max(1, len(positions) // HEADERS)]
    read_values = {*selected[:: max(1, len(selected) // DEEP)].tolist()}
    sizes, extents = list[tuple[int, int]](), list[ValueRange]()
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
    return DatasetSample(len(positions), heights, widths, tuple(extents))
