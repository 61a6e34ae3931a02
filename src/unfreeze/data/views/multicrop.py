"""Multi-crop (arXiv 2006.09882, section 3.3): several views of each image at several sizes."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from unfreeze.data.decode import decode_all
from unfreeze.data.views import colour, geometry
from unfreeze.data.views.drawn import DRAWS
from unfreeze.data.views.draws import uniforms
from unfreeze.data.views.spec import ViewSpec, preset
from unfreeze.runtime.isolation import isolated

Pixels = npt.NDArray[np.uint8]
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@isolated()
def multicrop(  # noqa: PLR0913  (names of the contract, all but one keyword-only)
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
    """One float32 `[B, 3, S, S]` a view, in the order of `sizes`, normalised.

    `images` are encoded files or uint8 `[H, W, 3]` arrays, `ids` name them. `counts` and `scales`
    belong to `sizes`. The same (seed, epoch, id) gives the same tensors whatever stands beside it
    in the batch. Raises `Undecodable` for bytes that are not a image.
    """
    specs = [
        preset(augment, size, scale)
        for size, count, scale in zip(sizes, counts, scales, strict=True)
        for _ in range(count)
    ]
    pixels = decode_all(images)
    return [normalise(v, mean, std) for v in make_views(pixels, ids, epoch, seed, specs)]


def make_views(
    images: Sequence[Pixels],
    ids: Sequence[int | str] | npt.NDArray[np.int64],
    epoch: int,
    seed: int,
    specs: Sequence[ViewSpec],
) -> list[torch.Tensor]:
    """One uint8 `[B, S, S, 3]` for each of `specs`: what is sent to the device."""
    sides = np.array([p.shape[:2] for p in images], np.int64).reshape(-1, 2)
    views = []
    for number, spec in enumerate(specs):
        draws = uniforms(seed, epoch, ids, number, DRAWS)
        where = geometry.boxes(sides, draws, spec)
        batch = np.empty((len(images), spec.size, spec.size, 3), np.uint8)
        for b, image in enumerate(images):
            batch[b] = _view(image, where[b], draws[b, geometry.DRAWS :], spec)
        views.append(torch.from_numpy(batch))
    return views


class Cut:
    """Cuts the views of `specs` for a loader: `cut(images, ids, epoch)`, uint8 `[B, S, S, 3]`."""

    def __init__(self, seed: int, specs: Sequence[ViewSpec]) -> None:
        self.seed, self.specs = seed, tuple(specs)

    def __call__(
        self, images: Sequence[Pixels], ids: npt.NDArray[np.int64], epoch: int
    ) -> list[torch.Tensor]:
        """One tensor a view."""
        return make_views(images, ids, epoch, self.seed, self.specs)


def _view(
    image: Pixels, box: npt.NDArray[np.int64], draws: npt.NDArray[np.float64], spec: ViewSpec
) -> Pixels:
    if spec.degrees:
        turn = (2 * draws[1] - 1) * spec.degrees
        view = geometry.turned(image, box, spec.size, turn)
    else:
        view = geometry.resample(image, box, spec.size)
    if draws[0] < spec.flip:
        view = cv2.flip(view, 1)  # type: ignore[assignment]
    return colour.distort(view, draws[2:], spec)


def normalise(
    views: torch.Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> torch.Tensor:
    """float32 `[B, 3, S, S]` (channels last in memory) from uint8 `[B, S, S, 3]`, on its device."""
    if views.device.type == "cpu" and views.dtype == torch.uint8:
        return _looked_up(views, mean, std)
    shift, scale = _constants(tuple(mean), tuple(std), views.device)
    return ((views.float() - shift) * scale).permute(0, 3, 1, 2)


@cache
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is taken off and multiplied with; sent once, as the host waits for the device then."""
    shift, spread = (
        torch.tensor(values, device=device, dtype=torch.float32) * 255 for values in (mean, std)
    )
    return shift, 1 / spread


def _looked_up(views: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """The same values from a table, image by image: one pass that stays in the cache."""
    usual: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    levels = torch.arange(256, **usual)[:, None]
    scale = 1 / (torch.tensor(std, **usual) * 255)
    table = ((levels - torch.tensor(mean, **usual) * 255) * scale)[None].numpy()
    found = np.empty(views.shape, np.float32)  # numpy asks for large pages, torch does not
    for image, out in zip(views.numpy(), found, strict=True):
        cv2.LUT(image, table, dst=out)
    return torch.from_numpy(found).permute(0, 3, 1, 2)
