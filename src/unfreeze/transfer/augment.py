"""What training sees of a picture: one random view, gentler than in pretraining.

A label must survive its view: larger crops, half the colour strength, no blur, no greys.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from unfreeze.data.loader import Ids, Make
from unfreeze.data.preprocess import Pixels, Preprocess
from unfreeze.data.views.multicrop import make_views
from unfreeze.data.views.spec import ViewSpec, preset

SCALES = {"photo": (0.35, 1.0), "mono": (0.35, 1.0), "digits": (0.6, 1.0)}
SMALL_SIDE = 64  # below it a picture has few pixels to lose
SMALL_SCALE = (0.6, 1.0)


def view(augment: str, size: int) -> ViewSpec:
    """The view behind `--augment` at `size` pixels."""
    scale = SMALL_SCALE if size < SMALL_SIDE else SCALES.get(augment, (0.35, 1.0))
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
    return _Random(view(augment, preprocess.image_size), seed)


class _Plain:
    """The same picture every epoch."""

    def __init__(self, cut: Callable[[Pixels], Pixels]) -> None:
        self.cut = cut

    def __call__(self, images: Sequence[Pixels], ids: Ids, epoch: int) -> list[torch.Tensor]:
        return [torch.from_numpy(np.stack([self.cut(image) for image in images]))]


class _Random:
    """One view that depends on (seed, epoch, picture) alone."""

    def __init__(self, spec: ViewSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed

    def __call__(self, images: Sequence[Pixels], ids: Ids, epoch: int) -> list[torch.Tensor]:
        return make_views(images, ids, epoch, self.seed, [self.spec])
