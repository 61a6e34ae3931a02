"""Gallery of the most used prototypes with their nearest images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from unfreeze.data.augment.multicrop import normalize
from unfreeze.runtime.atomic import replacing
from unfreeze.swav.model import SwAV

PROTOTYPES, EACH = 24, 8
Pixels = npt.NDArray[np.uint8]


class PrototypeGallery(NamedTuple):
    """The P most used prototypes and the M images nearest to each.

    `share` `[P]`: share of all images assigned to it; `prototype` `[P]`: its index;
    `nearest` `[P, M]`: positions of the images.
    """

    share: npt.NDArray[np.float64]
    prototype: npt.NDArray[np.int64]
    nearest: npt.NDArray[np.int64]


@torch.no_grad()
def make_gallery(
    model: SwAV,
    cut: Callable[[Sequence[int]], Pixels],
    count: int,
    *,
    device: torch.device,
    mean: Sequence[float],
    std: Sequence[float],
    batch: int = 256,
) -> PrototypeGallery:
    """Assign `count` images to prototypes; `cut(positions)` returns uint8 `[B, S, S, 3]`."""
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, count, batch):
        pixels = torch.from_numpy(cut(range(start, min(start + batch, count)))).to(device)
        parts.append(model([normalize(pixels, mean, std)])[1].cpu())
    model.train(was_training)
    scores = torch.cat(parts)  # [N, K]
    used = scores.argmax(1).bincount(minlength=scores.shape[1])
    top = used.argsort(descending=True)[: min(PROTOTYPES, int((used > 0).sum()))]
    nearest = scores[:, top].topk(min(EACH, count), dim=0).indices.T
    return PrototypeGallery(used[top].double().numpy() / count, top.numpy(), nearest.numpy())


def save_gallery(
    path: Path, gallery: PrototypeGallery, cut: Callable[[Sequence[int]], Pixels]
) -> None:
    """Write `prototypes.npz`: `images` uint8 `[P, M, S, S, 3]`, `prototype` and `share` `[P]`."""
    images = np.stack([cut([int(i) for i in row]) for row in gallery.nearest])
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, images=images, prototype=gallery.prototype, share=gallery.share)
