"""Device, precision and memory format of a run, and where its crops are computed."""

import math
from dataclasses import dataclass

import torch

from unfreeze.data.intensity import reading
from unfreeze.data.preprocess import Preprocess
from unfreeze.data.views import normalise
from unfreeze.data.views.multicrop import MEAN, STD
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.facts import Facts

SMALL = 64  # pixels; crops of larger images are computed on the host


@dataclass(frozen=True)
class Place:
    """Device, precision, and the mean and standard deviation that images are normalised with.

    `layout`: memory format of images and weights, channels_last or contiguous.
    """

    device: torch.device
    precision: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "channels_last"

    def takes(self, view: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Network input `[B, 3, S, S]` in `dtype`, normalised, of a uint8 view `[B, S, S, 3]`."""
        moved = view.to(self.device, non_blocking=True)
        images = normalise(moved, self.mean, self.std).to(dtype)
        return images.contiguous() if self.layout == "contiguous" else images


def views_on(s: PretrainSettings, facts: Facts) -> tuple[str, str]:
    """(device or host, reason): where the crops of a run are computed."""
    size = 4 * facts.side**2 * facts.images if facts.held is None else facts.held
    if facts.device != "cuda":
        return "host", "without a GPU, one image at a time is faster"
    if facts.side > SMALL:
        return "host", f"images of {facts.side} pixels; the GPU crops up to {SMALL}"
    if s.workers:
        return "host", "--workers is given"
    if s.store == "off" or s.scan != "full" or math.isinf(size):
        return "host", "decoded images are not kept in memory"
    if size > facts.room:
        return "host", f"{size / 2**30:.2f} GiB of images, the GPU has {facts.room / 2**30:.2f}"
    return "device", f"{size / 2**30:.2f} GiB of small images, stored as uint8 on the GPU"


def preprocess_of(s: PretrainSettings) -> Preprocess:
    """Evaluation preprocessing: centre crop of the large views' size, usual margin."""
    size = (s.size_crops or (224,))[0]
    return Preprocess(
        size,
        size if size <= 64 else round(size * 8 / 7),
        mean=MEAN,
        std=STD,
        intensity=reading(s.range, s.channels),
    )
