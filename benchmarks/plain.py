"""A plain multi-crop pipeline of Pillow and torchvision, the baseline of benchmarks and tests.

Written from the paper (arXiv 2006.09882, section 3.3 and appendix; color jitter of SimCLR, arXiv
2002.05709): for each view a random resized crop, horizontal flip, color jitter, grayscale,
Gaussian blur and normalisation.
"""

import io
import random
from collections.abc import Sequence

import torch
from PIL import Image, ImageFilter
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Blur:
    """Gaussian blur with a random radius between `low` and `high`, applied with probability 0.5."""

    def __init__(self, low: float = 0.1, high: float = 2.0) -> None:
        self.low, self.high = low, high

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, blurred or unchanged."""
        if random.random() >= 0.5:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(self.low, self.high)))


def view(
    size: int, scale: tuple[float, float], *, strength: float = 1.0, blur: bool = True
) -> transforms.Compose:
    """The transform of one view: image to normalised float32 `[3, size, size]`."""
    jitter = transforms.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=scale),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(0.2),
            *([Blur()] if blur else []),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


class Plain:
    """`plain(images)`: one float32 `[B, 3, S, S]` per view, from encoded bytes or uint8 pixels."""

    def __init__(
        self,
        sizes: Sequence[int] = (224, 96),
        counts: Sequence[int] = (2, 6),
        scales: Sequence[tuple[float, float]] = ((0.14, 1.0), (0.05, 0.14)),
        **how: object,
    ) -> None:
        self.views = [
            view(size, scale, **how)
            for size, count, scale in zip(sizes, counts, scales, strict=True)
            for _ in range(count)
        ]

    def __call__(self, images: Sequence[object]) -> list[torch.Tensor]:
        """All views of a batch."""
        by_image = [[make(image) for make in self.views] for image in map(_opened, images)]
        return [torch.stack(list(same)) for same in zip(*by_image, strict=True)]


def _opened(image: object) -> Image.Image:
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image)).convert("RGB")
    return Image.fromarray(image)
