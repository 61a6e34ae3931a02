"""What training sees of a image: one random view, gentler than in pretraining.

A label must survive its view: larger crops, half the colour strength, no blur, no greys.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from unfreeze.data.loader import Ids, Make
from unfreeze.data.preprocess import Pixels, Preprocess
from unfreeze.data.views.draws import uniforms
from unfreeze.data.views.multicrop import make_views
from unfreeze.data.views.spec import ViewSpec, preset

SCALES = {"photo": (0.35, 1.0), "mono": (0.35, 1.0), "digits": (0.6, 1.0)}
POLICIES = {"randaugment": "RandAugment", "trivialaugment": "TrivialAugmentWide"}
POLICY = -5  # a stream of random numbers of its own
SMALL_SIDE = 64  # below it a image has few pixels to lose
SMALL_SCALE = (0.6, 1.0)


def view(augment: str, size: int) -> ViewSpec:
    """The view behind `--augment` at `size` pixels."""
    scale = SMALL_SCALE if size < SMALL_SIDE else SCALES.get(augment, (0.35, 1.0))
    if augment in POLICIES:  # crops and flips as ever; the policy does the rest
        return replace(preset("photo", size, scale), jitter=0.0, grey=0.0, blur=0.0)
    strong = preset(augment, size, scale)
    return replace(
        strong,
        brightness=strong.brightness / 2,
        contrast=strong.contrast / 2,
        saturation=strong.saturation / 2,
        hue=strong.hue / 4,
        grey=0.0,
        blur=0.0,
    )


def maker(augment: str, preprocess: Preprocess, seed: int) -> Make:
    """What the loader calls: uint8 [B, S, S, 3] of a batch; `none` gives what evaluation sees."""
    if augment == "none":
        return _Plain(preprocess.pixels)
    cut = _Random(view(augment, preprocess.image_size), seed)
    return _Policy(cut, POLICIES[augment], seed) if augment in POLICIES else cut


class _Plain:
    """The same image every epoch."""

    def __init__(self, cut: Callable[[Pixels], Pixels]) -> None:
        self.cut = cut

    def __call__(self, images: Sequence[Pixels], ids: Ids, epoch: int) -> list[torch.Tensor]:
        return [torch.from_numpy(np.stack([self.cut(image) for image in images]))]


class _Random:
    """One view that depends on (seed, epoch, image) alone."""

    def __init__(self, spec: ViewSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed

    def __call__(self, images: Sequence[Pixels], ids: Ids, epoch: int) -> list[torch.Tensor]:
        return make_views(images, ids, epoch, self.seed, [self.spec])


class _Policy:
    """torchvision's policy `kind` over a view; what it draws follows from (seed, epoch, image).

    Its defaults are the published ones: two operations of strength 9 of 30 (RandAugment, arXiv
    1909.13719), one of any strength (TrivialAugment, arXiv 2103.10158).
    """

    def __init__(self, cut: _Random, kind: str, seed: int) -> None:
        from torchvision.transforms import v2

        self.cut, self.seed = cut, seed
        self.policy: Any = getattr(v2, kind)()

    def __call__(self, images: Sequence[Pixels], ids: Ids, epoch: int) -> list[torch.Tensor]:
        (views,) = self.cut(images, ids, epoch)
        draws = uniforms(self.seed, epoch, ids, POLICY, 1)[:, 0]
        with torch.random.fork_rng(devices=[]):  # it draws from torch's own generator
            for place, draw in enumerate((draws * 2**53).astype(np.int64).tolist()):
                torch.default_generator.manual_seed(draw)
                views[place] = self.policy(views[place].permute(2, 0, 1)).permute(1, 2, 0)
        return [views]
