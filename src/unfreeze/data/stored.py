"""Stored values of high-bit-depth images, before the conversion to 8 bits."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from unfreeze.data.channels import Layout, picked, read_channels
from unfreeze.data.decode import either, naming
from unfreeze.data.deep import as_stored, deep_colour, is_deep
from unfreeze.data.silence import pillow_silenced

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
        return picked(as_stored(image) if deep is None else deep.values, channels)

    def from_tiff(header: Layout) -> Values | None:
        return picked(read_channels(data, header, channels), None)

    with pillow_silenced(), naming(data):
        values = either(data, channels, from_tiff, from_pillow)
    return None if values is None or values.dtype in (np.uint8, np.bool_) else values
