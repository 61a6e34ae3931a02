"""Preprocessing for evaluation and prediction (no augmentation), stored with every model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from unfreeze.data.augment.multicrop import normalize
from unfreeze.data.images.intensity import parse_intensity
from unfreeze.data.sources.source import Source
from unfreeze.errors import UsageError, WeightsError

Pixels = npt.NDArray[np.uint8]
FITS = ("crop", "squash", "pad", "tile")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side to `resize` (antialiased), centre crop to `image_size`, normalise.

    With `fit="squash"` the whole image is resized to `image_size` x `width` (height, width; `width`
    0: square), without a crop and without regard to its aspect ratio. With `fit="pad"` the longer
    side is resized to `image_size`, and bars in the mean colour make the image square. With
    `fit="tile"` the image keeps its size, and the network gets tiles of that shape.
    """

    image_size: int
    resize: int
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    intensity: str = (
        "auto"  # rule for high bit depth and (after @) channels, see `format_intensity`
    )
    fit: str = "crop"
    width: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the network's input in pixels."""
        return self.image_size, self.width or self.image_size

    def pixels(self, source: Pixels) -> Pixels:
        """uint8 `[S, S, 3]` (or `[*shape, 3]`; tile: the image) of a uint8 `[H, W, 3]` image."""
        height, width = source.shape[:2]
        if self.fit == "tile":
            return source
        if self.fit == "squash":
            return self._squashed(source)
        if self.fit == "pad":
            return self._squashed(self._padded(self._shrunk(source)))
        shorter = min(height, width)
        target = max(self.resize, self.image_size)
        size = (
            max(self.image_size, int(width * target / shorter)),
            max(self.image_size, int(height * target / shorter)),
        )
        image = Image.fromarray(source)
        if size != (width, height):
            image = image.resize(size, _FILTERS[self.interpolation])
        left = round((size[0] - self.image_size) / 2)
        top = round((size[1] - self.image_size) / 2)
        return np.asarray(image.crop((left, top, left + self.image_size, top + self.image_size)))

    def region(self, height: int, width: int) -> tuple[float, float, float, float]:
        """(top, left, height, width) of the network's input in pixels of an image of that size.

        With `fit="pad"` it reaches over the image's borders.
        """
        if self.fit in ("squash", "tile"):
            return 0.0, 0.0, float(height), float(width)
        if self.fit == "pad":
            side = float(max(height, width))
            return (height - side) / 2, (width - side) / 2, side, side
        scale = min(height, width) / max(self.resize, self.image_size)
        side = self.image_size * scale
        return (height - side) / 2, (width - side) / 2, side, side

    def whole(self, source: Pixels) -> Pixels:
        """The image from which training crops are cut: as it is, or square with `fit`."""
        height, width = source.shape[:2]
        if height == width or self.fit not in ("squash", "pad"):
            return source
        if self.fit == "pad":
            return self._padded(source)
        side = min(max(height, width), max(min(height, width), 2 * self.image_size))
        image = Image.fromarray(source).resize((side, side), _FILTERS[self.interpolation])
        return np.asarray(image)

    def _shrunk(self, source: Pixels) -> Pixels:
        """With `image_size` as the longer side."""
        height, width = source.shape[:2]
        scale = self.image_size / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if size == (width, height):
            return source
        return np.asarray(Image.fromarray(source).resize(size, _FILTERS[self.interpolation]))

    def _padded(self, source: Pixels) -> Pixels:
        """Square, with bars in the mean colour."""
        height, width = source.shape[:2]
        side = max(height, width)
        padded = np.empty((side, side, 3), np.uint8)
        padded[:] = np.rint(255 * np.array(self.mean)).clip(0, 255)
        top, left = (side - height) // 2, (side - width) // 2
        padded[top : top + height, left : left + width] = source
        return padded

    def _squashed(self, source: Pixels) -> Pixels:
        if source.shape[:2] == self.shape:
            return source
        image = Image.fromarray(source).resize(self.shape[::-1], _FILTERS[self.interpolation])
        return np.asarray(image)

    def apply(self, image: Pixels) -> torch.Tensor:
        """float32 `[3, S, S]` (or `[3, *shape]`) of a uint8 `[H, W, 3]` image."""
        planes = torch.from_numpy(self.pixels(image).copy()).permute(2, 0, 1).float()
        shift, scale = (
            torch.tensor(values, device="cpu", dtype=torch.float32)[:, None, None] * 255
            for values in (self.mean, self.std)
        )
        return (planes - shift) / scale

    def batch(self, images: Sequence[Pixels]) -> torch.Tensor:
        """float32 `[B, 3, S, S]` (or `[B, 3, *shape]`)."""
        return torch.stack([self.apply(image) for image in images])

    def collate(self, samples: Sequence[Pixels]) -> torch.Tensor:
        """uint8 `[B, S, S, 3]` of what `pixels` returned for some images."""
        return torch.from_numpy(np.stack(samples))

    def model_input(self, batch: torch.Tensor) -> torch.Tensor:
        """The network's input, normalised float32 `[B, 3, S, S]`, of uint8 `[B, S, S, 3]`."""
        return normalize(batch, self.mean, self.std)

    def attach(self, source: Source) -> None:
        """Make a source decode its images as this preprocessing needs them."""
        if source.noun != "image":
            raise UsageError(
                f"This model is for images, and {source.where} holds {source.noun}s.",
                "Give images.",
            )
        source.intensity = self.intensity

    def as_dict(self) -> dict[str, Any]:
        """A JSON-compatible dict."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """The inverse of `as_dict`; WeightsError if a field is missing or unknown."""
        try:
            plain: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
            }
            preprocess = cls(**plain)
        except TypeError as error:
            raise WeightsError(f"The model's preprocessing is invalid: {error}.") from error
        try:
            parse_intensity(preprocess.intensity)
        except (ValueError, AttributeError) as error:
            message = f"The model's intensity range {preprocess.intensity!r} is unknown."
            raise WeightsError(message) from error
        if preprocess.fit not in FITS:
            raise WeightsError(f"The model's fit {preprocess.fit!r} is unknown.")
        if preprocess.interpolation not in _FILTERS:
            raise WeightsError(
                f"The model's interpolation {preprocess.interpolation!r} is unknown."
            )
        return preprocess
