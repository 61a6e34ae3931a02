"""Whitening filters for a 3x3 first layer: uncorrelated outputs from the first step on.

Neighbouring pixels and colours are strongly correlated, and a random layer passes that on. The
eigenvectors of the patches' covariance, each divided by the square root of its eigenvalue, give
outputs without correlation and of equal variance; with both signs a ReLU loses nothing (Jordan,
arXiv 2404.00498, section 3.2). The layer is trained like any other.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

PATCHES = 40  # of each image
FLOOR = 5e-3  # added to eigenvalues, in units of the normalised pixels' variance
SMALLEST = 1e-7  # of the largest eigenvalue; grey images have only nine directions of 27


def whitening_filters(patches: Tensor, count: int) -> Tensor:
    """At most `count` filters `[n, D]` in pairs of opposite sign, for patches `[N, D]`.

    The directions of largest variance come first. None if the patches do not vary in all D
    directions, as those of grey images: there it gained nothing (docs/LOG.md).
    """
    centred = (patches - patches.mean(dim=0)).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    values, vectors = values.flip(0), vectors.flip(1)
    usable = int((values > max(SMALLEST * float(values[0]), 1e-12)).sum())
    n = count // 2 if usable == len(values) else 0
    n = min(n, usable)
    filters = (vectors[:, :n] / (values[:n] + FLOOR).sqrt()).T
    return torch.cat([filters, -filters]).to(patches.dtype)


def first_3x3(network: nn.Module) -> nn.Conv2d | None:
    """The first convolution if it is 3x3 on three channels; else None."""
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.kernel_size != (3, 3) or first.in_channels != 3 or first.groups != 1:
        return None
    return first


def random_patches(images: Tensor, seed: int) -> Tensor:
    """`[N * PATCHES, 27]` patches of 3x3 pixels of images `[N, 3, S, S]`."""
    rng = np.random.default_rng(seed)
    side = images.shape[-1] - 2
    corners: npt.NDArray[np.int64] = rng.integers(0, side, (len(images), PATCHES, 2))
    return torch.stack(
        [
            image[:, y : y + 3, x : x + 3].flatten()
            for image, places in zip(images, corners.tolist(), strict=True)
            for y, x in places
        ]
    )


@torch.no_grad()
def whiten_first_layer(layer: nn.Conv2d, images: Tensor, seed: int) -> int:
    """Replace the first filters of `layer`, in place; returns how many (0 for grey images).

    `images`: normalised, `[N, 3, S, S]`. The other filters keep their random values.
    """
    filters = whitening_filters(random_patches(images, seed), layer.out_channels)
    layer.weight[: len(filters)] = filters.view(-1, 3, 3, 3).to(layer.weight)
    return len(filters)
