"""Facts about dataset and hardware that a plan depends on; where the crops are computed."""

import math
from dataclasses import dataclass

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import MEAN, STD
from unfreeze.data.images.intensity import format_intensity
from unfreeze.data.images.preprocess import Preprocess


@dataclass(frozen=True)
class DatasetStats:
    """Dataset and hardware facts that the plan depends on besides the settings."""

    images: int  # usable training images
    side: int  # median of their shorter sides, in pixels
    device: str  # cpu, cuda or mps
    width: int = 512  # feature dimension of the backbone
    processes: int = 1
    held: float | None = None  # bytes of the decoded images; inf: not stored; None: estimate them
    room: float = 2**31  # bytes of device memory that images may use
    labelled: bool = False  # enough labels for k-NN accuracy
    own_head: bool = False  # the initial weights have the projection head and prototypes of a run


SMALL = 64  # pixels; larger images have small crops too, and are cropped on the host


def choose_crop_device(s: PretrainSettings, facts: DatasetStats) -> tuple[str, str]:
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


def evaluation_preprocess(s: PretrainSettings) -> Preprocess:
    """Evaluation preprocessing: centre crop of `image_size` or the large views', usual margin."""
    size = max(s.image_size or 0, (s.size_crops or (224,))[0])
    return Preprocess(
        size,
        size if size <= 64 else round(size * 8 / 7),
        mean=s.mean or MEAN,
        std=s.std or STD,
        intensity=format_intensity(s.range, s.channels),
    )
