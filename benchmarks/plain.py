"""The plain multi-crop pipeline that benchmarks and tests compare with: Pillow and torchvision.

Written from the paper (arXiv 2006.09882, section 3.3 and appendix; colours of SimCLR, arXiv
2002.05709): for each view a random resized crop, flip, colour jitter, grey, Gaussian blur,
normalisation.
"""

import io
import random
from collections.abc import Sequence

import torch
from PIL import Image, ImageFilter
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Blur:
    """Pillow's Gaussian blur with a radius between `low` and `high`, half of the time."""

    def __init__(self, low: float = 0.1, high: float = 2.0) -> None:
        self.low, self.high = low, high

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, blurred or as it is."""
        if random.random() >= 0.5:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(self.low, self.high)))


def view(
    size: int, scale: tuple[float, float], *, strength: float = 1.0, blur: bool = True
) -> transforms.Compose:
    """One view of `size` pixels, up to normalised float32 `[3, size, size]`."""
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
    """`plain(images)`: one float32 `[B, 3, S, S]` a view, from encoded bytes or uint8 pixels."""

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
        by_image = [[make(one) for make in self.views] for one in map(_opened, images)]
        return [torch.stack(list(same)) for same in zip(*by_image, strict=True)]


def _opened(image: object) -> Image.Image:
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image)).convert("RGB")
    return Image.fromarray(image)
