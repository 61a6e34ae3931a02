"""Multi-crop (arXiv 2006.09882, section 3.3): random crops of each image at several sizes."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from unfreeze.data.augment import color, random_resized_crop
from unfreeze.data.augment.config import CropSpec, preset
from unfreeze.data.augment.parameters import DRAWS, uniforms
from unfreeze.data.images.decode import decode_all
from unfreeze.runtime.isolation import isolated

Pixels = npt.NDArray[np.uint8]
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@isolated()
def multicrop(  # noqa: PLR0913  (public API, keyword-only)
    images: Sequence[bytes | Pixels],
    *,
    ids: Sequence[int | str] | npt.NDArray[np.int64],
    epoch: int,
    seed: int,
    sizes: Sequence[int] = (224, 96),
    counts: Sequence[int] = (2, 6),
    scales: Sequence[tuple[float, float]] = ((0.14, 1.0), (0.05, 0.14)),
    augment: str = "photo",
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> list[torch.Tensor]:
    """One normalised float32 `[B, 3, S, S]` per crop, in the order of `sizes`.

    `images`: encoded files or uint8 `[H, W, 3]` arrays; `ids`: their identifiers. `counts` and
    `scales` (fractions of the area): one per size. The same (seed, epoch, id) gives the same
    tensors, whatever the rest of the batch. Raises `Undecodable` for bytes that are not an image.
    """
    specs = [
        preset(augment, size, scale)
        for size, count, scale in zip(sizes, counts, scales, strict=True)
        for _ in range(count)
    ]
    pixels = decode_all(images)
    return [normalize(v, mean, std) for v in make_crops(pixels, ids, epoch, seed, specs)]


def make_crops(
    images: Sequence[Pixels],
    ids: Sequence[int | str] | npt.NDArray[np.int64],
    epoch: int,
    seed: int,
    specs: Sequence[CropSpec],
) -> list[torch.Tensor]:
    """One uint8 `[B, S, S, 3]` per spec, not normalised."""
    sides = np.array([p.shape[:2] for p in images], np.int64).reshape(-1, 2)
    views = []
    for number, spec in enumerate(specs):
        draws = uniforms(seed, epoch, ids, number, DRAWS)
        boxes = random_resized_crop.random_boxes(sides, draws, spec)
        batch = np.empty((len(images), spec.size, spec.size, 3), np.uint8)
        for b, image in enumerate(images):
            batch[b] = _view(image, boxes[b], draws[b, random_resized_crop.DRAWS :], spec)
        views.append(torch.from_numpy(batch))
    return views


class MultiCropTransform:
    """Makes the crops of `specs` for a loader: `cut(images, ids, epoch)`, uint8 `[B, S, S, 3]`."""

    def __init__(self, seed: int, specs: Sequence[CropSpec]) -> None:
        self.seed, self.specs = seed, tuple(specs)

    def __call__(
        self, images: Sequence[Pixels], ids: npt.NDArray[np.int64], epoch: int
    ) -> list[torch.Tensor]:
        """One tensor per crop."""
        return make_crops(images, ids, epoch, self.seed, self.specs)


def _view(
    image: Pixels, box: npt.NDArray[np.int64], draws: npt.NDArray[np.float64], spec: CropSpec
) -> Pixels:
    if spec.degrees:
        turn = (2 * draws[1] - 1) * spec.degrees
        view = random_resized_crop.rotated_crop(image, box, spec.size, turn)
    else:
        view = random_resized_crop.resized_crop(image, box, spec.size)
    if draws[0] < spec.flip:
        view = cv2.flip(view, 1)  # type: ignore[assignment]
    return color.augment_colour(view, draws[2:], spec)


def normalize(
    views: torch.Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> torch.Tensor:
    """float32 `[B, 3, S, S]` (channels-last) of uint8 `[B, S, S, 3]`, on the same device."""
    if views.device.type == "cpu" and views.dtype == torch.uint8:
        return _normalise_with_table(views, mean, std)
    shift, scale = _constants(tuple(mean), tuple(std), views.device)
    return ((views.float() - shift) * scale).permute(0, 3, 1, 2)


@cache
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(shift, scale) on the device; cached, because each copy synchronises with the device."""
    shift, deviation = (
        torch.tensor(values, device=device, dtype=torch.float32) * 255 for values in (mean, std)
    )
    return shift, 1 / deviation


def _normalise_with_table(
    views: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """The same values by table lookup, image by image: one pass that stays in the CPU cache."""
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    levels = torch.arange(256, **options)[:, None]
    scale = 1 / (torch.tensor(std, **options) * 255)
    table = ((levels - torch.tensor(mean, **options) * 255) * scale)[None].numpy()
    normalised = np.empty(views.shape, np.float32)  # numpy uses huge pages, torch does not
    for image, out in zip(views.numpy(), normalised, strict=True):
        cv2.LUT(image, table, dst=out)
    return torch.from_numpy(normalised).permute(0, 3, 1, 2)
