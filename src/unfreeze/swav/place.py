"""Where the arithmetic happens, and how images get there."""

import math
from dataclasses import dataclass

import torch

from unfreeze.data.intensity import reading
from unfreeze.data.preprocess import Preprocess
from unfreeze.data.views import normalise
from unfreeze.data.views.multicrop import MEAN, STD
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.facts import Facts

SMALL = 64  # pixels; views of larger images are not cut on the device


@dataclass(frozen=True)
class Place:
    """The device, its precision, and the mean and deviation that images are normalised with.

    `layout`: how images and weights lie in memory, channels_last or contiguous.
    """

    device: torch.device
    precision: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "channels_last"

    def takes(self, view: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A view `[B, S, S, 3]` as the network takes it: `[B, 3, S, S]`, normalised, in `dtype`."""
        there = view.to(self.device, non_blocking=True)
        found = normalise(there, self.mean, self.std).to(dtype)
        return found.contiguous() if self.layout == "contiguous" else found


def views_on(s: PretrainSettings, facts: Facts) -> tuple[str, str]:
    """(device or host, reason): where the views of a run are cut."""
    size = 4 * facts.side**2 * facts.images if facts.held is None else facts.held
    if facts.device != "cuda":
        return "host", "one by one is faster without a GPU"
    if facts.side > SMALL:
        return "host", f"images of {facts.side} pixels; up to {SMALL} they go to the GPU"
    if s.workers:
        return "host", "by the workers that were given"
    if s.store == "off" or s.scan != "full" or math.isinf(size):
        return "host", "decoded images are not held"
    if size > facts.room:
        return "host", f"{size / 2**30:.2f} GiB, the GPU has {facts.room / 2**30:.2f} for them"
    return "device", f"{size / 2**30:.2f} GiB of small images, held as uint8 on the GPU"


def preprocess_of(s: PretrainSettings) -> Preprocess:
    """The centre at the size of the large views; big images keep the usual margin."""
    size = (s.size_crops or (224,))[0]
    return Preprocess(
        size,
        size if size <= 64 else round(size * 8 / 7),
        mean=MEAN,
        std=STD,
        intensity=reading(s.range, s.channels),
    )
