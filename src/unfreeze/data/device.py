"""Small images held on the device, and batches whose views are cut there."""

from collections.abc import Generator, Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unfreeze.data.dataset import ImageDataset
from unfreeze.data.loader import Batch, Loader, Request
from unfreeze.data.views.batched import batched_views
from unfreeze.data.views.drawn import Drawn, table
from unfreeze.data.views.spec import ViewSpec
from unfreeze.errors import ResourceError

Ids = npt.NDArray[np.int64]


def bytes_held(images: ImageDataset, positions: Ids) -> int | None:
    """Bytes that these images take side by side; None where their sizes are not known yet."""
    sides = _sides(images, positions)
    return None if sides is None else 3 * len(sides) * int(sides.max(0).prod())


def _sides(images: ImageDataset, positions: Ids) -> npt.NDArray[np.int64] | None:
    if images.store is None or not len(positions):
        return None
    rows = images.index.rows[positions]
    if not all(int(row) in images.store for row in rows):
        return None
    return images.store.shapes[rows].astype(np.int64)


def sent(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """The values on a device, for which the host does not wait."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":  # else the copy would wait for what is queued
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Held:
    """Images as uint8 `[N, 3, H, W]` on a device, smaller ones in the top left corner."""

    def __init__(
        self, images: ImageDataset, positions: Ids, device: torch.device, *, most: int
    ) -> None:
        """`most`: bytes that they may take. ResourceError where they take more."""
        self.device = device
        named = np.unique(positions)
        self.place = np.full(len(images), -1, np.int64)
        self.place[named] = np.arange(len(named))
        shots = [images[int(i)] for i in named]
        self.sides = np.array([shot.shape[:2] for shot in shots], np.int64).reshape(-1, 2)
        height, width = (int(side) for side in self.sides.max(0))
        needed = 3 * len(shots) * height * width
        if needed > most:
            raise ResourceError(
                f"{len(shots):,} images of up to {height} x {width} pixels need "
                f"{needed / 2**30:.2f} GiB of device memory; the limit is {most / 2**30:.2f} GiB.",
                "Use --views-on host.",
            )
        joined = np.zeros((len(shots), height, width, 3), np.uint8)
        for place, shot in zip(joined, shots, strict=True):
            place[: shot.shape[0], : shot.shape[1]] = shot
        self.pixels = torch.from_numpy(joined).to(device).permute(0, 3, 1, 2).contiguous()

    def views(
        self, ids: Ids, epoch: int, seed: int, specs: Sequence[ViewSpec]
    ) -> list[torch.Tensor]:
        """One uint8 `[B, S, S, 3]` for each of `specs`, on the device; the host waits for none."""
        place = self.place[ids]
        found: list[torch.Tensor] = []
        for spec, same in groupby(enumerate(specs), key=lambda entry: entry[1]):
            numbered = list(same)
            drawn = Drawn(sent(table(self.sides[place], ids, epoch, seed, numbered), self.device))
            pixels = self.pixels[sent(np.tile(place, len(numbered)), self.device)]
            found += batched_views(pixels, drawn, spec).chunk(len(numbered))
        return found


class HeldLoader(Loader):
    """A loader of images that are `held`: its batches have views that were cut on the device."""

    def __init__(self, held: Held, specs: Sequence[ViewSpec], **known: Any) -> None:
        """`known`: what a `Loader` takes."""
        super().__init__(**known)
        self.held, self.specs = held, tuple(specs)

    def _cut(self, requests: Iterable[Request]) -> Generator[Batch]:
        labels = self.dataset.labels
        for step, epoch, ids in requests:
            views = self.held.views(ids, epoch, self.seed, self.specs)
            yield Batch(step, epoch, ids, labels[ids], views)
