"""Crops and colours of the auto recipe: by the size and the number of the images, with reasons."""

from collections.abc import Iterator
from typing import Any

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.swav.dataset_stats import SMALL, DatasetStats
from unfreeze.swav.presets import small_side, usual_side
from unfreeze.tasks.registry import pretrain_task

TINY = 24  # pixels of the largest crop, below which it is not reduced, and epsilon is lower
FEW = 5_000  # photographs, below which they need easier crops and sharper codes (docs/LOG.md)
PER_RESOLUTION = ("size_crops", "nmb_crops", "min_scale_crops", "max_scale_crops")

Values = Iterator[tuple[str, Any, str]]


def few_photographs(pixels: int, images: int) -> bool:
    """Whether large crops of `pixels` are cut from so few images that the published values fail."""
    return pixels > SMALL and images < FEW


def crop_values(s: PretrainSettings, facts: DatasetStats) -> Values:
    """(setting, value, reason) of each setting of the crops."""
    given = s.size_crops
    large = given[0] if given else s.image_size or usual_side(facts.side, facts.device)
    why = f"the images have {facts.side} pixels" + (
        "" if facts.device != "cpu" or facts.side <= 128 else "; at most 128 without a GPU"
    )
    if s.image_size:
        why = "--image-size"
    yield "image_size", large, "the largest view" if given else why
    few = few_photographs(large, facts.images)
    published = large > SMALL and not few
    colours = "" if published else ": half the colour jitter, no blur"
    reason = f"{facts.images:,} images" if few else f"views of {large} pixels"
    yield "augment", "photo" if published else "small", reason + colours
    crop = (large, why) if given or s.image_size else _small_image_crop(large, why)
    lengths = [len(value) for name in PER_RESOLUTION if (value := getattr(s, name))]
    if pretrain_task(s.method).needs_teacher:
        yield from _distilled(*crop)
    elif max(lengths) > 1 if lengths else published:
        yield from _two_resolutions(large, facts.device)
    else:
        yield from _one_resolution(*crop, facts.images)


def _small_image_crop(side: int, why: str) -> tuple[int, str]:
    """(size of the crops, reason) for images of `side` pixels, of which `why` is the reason."""
    crop = 8 * round(3 / 4 * side / 8)
    if side > SMALL or crop == side or crop < TINY:
        return side, why
    # a crop is a part of the image, enlarged: objects then have the size of those in the image
    return crop, f"three quarters of {side}: cheaper, and more accurate on whole images"


def _two_resolutions(large: int, device: str) -> Values:
    yield "size_crops", (large, small_side(large)), "in proportion 224:96"
    many = 6 if device != "cpu" else 4
    yield "nmb_crops", (2, many), "published" if many == 6 else "4 of 6 without a GPU"
    yield "min_scale_crops", (0.14, 0.05), "published"
    yield "max_scale_crops", (1.0, 0.14), "published"


def _one_resolution(large: int, why: str, images: int) -> Values:
    yield "size_crops", (large,), why
    if few_photographs(large, images):
        reason = f"{images:,} images are few: no small crops (docs/LOG.md)"
        scale = "easier to recognise than smaller ones"
    else:
        reason = f"views of {large} pixels have no smaller crops"
        scale = "smaller crops have too few pixels to recognise"
    yield "nmb_crops", (2,), reason
    yield "min_scale_crops", (0.2,), scale
    yield "max_scale_crops", (1.0,), "published"


def _distilled(large: int, why: str) -> Values:
    """Crops that show most of the image, because the teacher saw all of it."""
    yield "size_crops", (large,), why
    yield "nmb_crops", (2,), "an image is decoded once for both"
    yield "min_scale_crops", (0.2,), "the target is the teacher's view of the whole image"
    yield "max_scale_crops", (1.0,), "the whole image"
