"""Training augmentation: one random view per image, weaker than in pretraining.

The label must still hold for the view: larger crops, half the colour strength, no blur, no grey.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from unfreeze.data.augment.config import CropSpec, preset
from unfreeze.data.augment.multicrop import make_crops
from unfreeze.data.augment.parameters import uniforms
from unfreeze.data.images.preprocess import Pixels, Preprocess
from unfreeze.data.loading.loader import Ids, MakeViews

SCALES = {"photo": (0.35, 1.0), "mono": (0.35, 1.0), "digits": (0.6, 1.0)}
POLICIES = {"randaugment": "RandAugment", "trivialaugment": "TrivialAugmentWide"}
POLICY = -5  # index of the policy's own stream of random numbers
SMALL_SIDE = 64  # pixels; smaller images get larger crops
SMALL_SCALE = (0.6, 1.0)


def training_view(augment: str, size: int) -> CropSpec:
    """View parameters of `--augment` at `size` pixels."""
    scale = SMALL_SCALE if size < SMALL_SIDE else SCALES.get(augment, (0.35, 1.0))
    if augment in POLICIES:  # only crop and flip; the policy does the rest
        return replace(preset("photo", size, scale), jitter=0.0, grey=0.0, blur=0.0)
    spec = preset(augment, size, scale)
    return replace(
        spec,
        brightness=spec.brightness / 2,
        contrast=spec.contrast / 2,
        saturation=spec.saturation / 2,
        hue=spec.hue / 4,
        grey=0.0,
        blur=0.0,
    )


def view_maker_of(augment: str, preprocess: Preprocess, seed: int) -> MakeViews:
    """The loader's transform: a batch to uint8 [B, S, S, 3]; `none` is evaluation preprocessing."""
    if augment == "none":
        return _Plain(preprocess)
    crop = _Random(training_view(augment, preprocess.image_size), preprocess, seed)
    return _Policy(crop, POLICIES[augment], seed) if augment in POLICIES else crop


class _Plain:
    """Evaluation preprocessing: the same input every epoch."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, images: Sequence[Pixels], ids: Ids, epoch: int) -> list[torch.Tensor]:
        return [self.preprocess.collate([self.preprocess.pixels(image) for image in images])]


class _Random:
    """One random view, determined by (seed, epoch, image)."""

    def __init__(self, spec: CropSpec, preprocess: Preprocess, seed: int) -> None:
        self.spec, self.preprocess, self.seed = spec, preprocess, seed

    def __call__(self, images: Sequence[Pixels], ids: Ids, epoch: int) -> list[torch.Tensor]:
        whole = [self.preprocess.whole(image) for image in images]
        return make_crops(whole, ids, epoch, self.seed, [self.spec])


class _Policy:
    """torchvision's policy `kind` applied to a view, determined by (seed, epoch, image).

    With the published defaults: two operations of magnitude 9 of 30 (RandAugment, arXiv
    1909.13719), one operation of random magnitude (TrivialAugment, arXiv 2103.10158).
    """

    def __init__(self, crop: _Random, kind: str, seed: int) -> None:
        from torchvision.transforms import v2

        self.crop, self.seed = crop, seed
        self.policy: Any = getattr(v2, kind)()

    def __call__(self, images: Sequence[Pixels], ids: Ids, epoch: int) -> list[torch.Tensor]:
        (views,) = self.crop(images, ids, epoch)
        seeds = uniforms(self.seed, epoch, ids, POLICY, 1)[:, 0]
        with torch.random.fork_rng(devices=[]):  # the policy uses torch's global generator
            for index, seed in enumerate((seeds * 2**53).astype(np.int64).tolist()):
                torch.default_generator.manual_seed(seed)
                views[index] = self.policy(views[index].permute(2, 0, 1)).permute(1, 2, 0)
        return [views]
