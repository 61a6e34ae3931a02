"""Small datasets cached on the GPU, and a loader that makes crops there."""

from collections.abc import Generator, Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unfreeze.data.augment.batched import crop_batch
from unfreeze.data.augment.config import CropSpec
from unfreeze.data.augment.parameters import CropParameters, parameter_table
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.loader import Batch, Loader, Request
from unfreeze.errors import ResourceError

Ids = npt.NDArray[np.int64]


def bytes_held(images: ImageDataset, positions: Ids) -> int | None:
    """Device memory in bytes that these images need, padded; None if their sizes are unknown."""
    sides = _sides(images, positions)
    return None if sides is None else 3 * len(sides) * int(sides.max(0).prod())


def _sides(images: ImageDataset, positions: Ids) -> npt.NDArray[np.int64] | None:
    if images.store is None or not len(positions):
        return None
    rows = images.index.rows[positions]
    if not all(int(row) in images.store for row in rows):
        return None
    return images.store.shapes[rows].astype(np.int64)


def to_device_async(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """An asynchronous copy of the array on a device."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":  # only copies from pinned memory are asynchronous
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class DeviceImages:
    """Images as uint8 `[N, 3, H, W]` on a device, padded at the right and the bottom."""

    def __init__(
        self, images: ImageDataset, positions: Ids, device: torch.device, *, most: int
    ) -> None:
        """`most`: limit of device memory in bytes; ResourceError above it."""
        self.device = device
        unique = np.unique(positions)
        self.rows = np.full(len(images), -1, np.int64)
        self.rows[unique] = np.arange(len(unique))
        decoded = [images[int(i)] for i in unique]
        self.sides = np.array([pixels.shape[:2] for pixels in decoded], np.int64).reshape(-1, 2)
        height, width = (int(side) for side in self.sides.max(0))
        needed = 3 * len(decoded) * height * width
        if needed > most:
            raise ResourceError(
                f"{len(decoded):,} images of up to {height} x {width} pixels need "
                f"{needed / 2**30:.2f} GiB of device memory; the limit is {most / 2**30:.2f} GiB.",
                "Use --views-on host.",
            )
        padded = np.zeros((len(decoded), height, width, 3), np.uint8)
        for slot, pixels in zip(padded, decoded, strict=True):
            slot[: pixels.shape[0], : pixels.shape[1]] = pixels
        self.pixels = torch.from_numpy(padded).to(device).permute(0, 3, 1, 2).contiguous()

    def views(
        self, ids: Ids, epoch: int, seed: int, specs: Sequence[CropSpec]
    ) -> list[torch.Tensor]:
        """One uint8 `[B, S, S, 3]` on the device for each of `specs`, without synchronising."""
        rows = self.rows[ids]
        views: list[torch.Tensor] = []
        for spec, group in groupby(enumerate(specs), key=lambda entry: entry[1]):
            numbered = list(group)
            parameters = CropParameters(
                to_device_async(
                    parameter_table(self.sides[rows], ids, epoch, seed, numbered), self.device
                )
            )
            pixels = self.pixels[to_device_async(np.tile(rows, len(numbered)), self.device)]
            views += crop_batch(pixels, parameters, spec).chunk(len(numbered))
        return views


class DeviceLoader(Loader):
    """A loader of images cached on the device, where it also makes the crops."""

    def __init__(self, held: DeviceImages, specs: Sequence[CropSpec], **known: Any) -> None:
        """`known`: the arguments of `Loader`."""
        super().__init__(**known)
        self.held, self.specs = held, tuple(specs)

    def _cut(self, requests: Iterable[Request]) -> Generator[Batch]:
        labels = self.dataset.targets
        for step, epoch, ids in requests:
            views = self.held.views(ids, epoch, self.seed, self.specs)
            yield Batch(step, epoch, ids, labels[ids], views)
