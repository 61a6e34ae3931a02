"""Whitening filters: outputs are uncorrelated, of equal variance, in pairs of opposite sign."""

import torch
import torch.nn.functional as F
from torch import nn

from unfreeze.models.whitening import (
    FLOOR,
    first_3x3,
    random_patches,
    whiten_first_layer,
    whitening_filters,
)


def smooth_images(count=64, side=16):
    """Images whose neighbouring pixels and channels are correlated."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 3, side, side, generator=g)
    mixed = torch.einsum(
        "dc,nchw->ndhw", torch.tensor([[1, 0.9, 0.8], [0.9, 1, 0.9], [0, 0, 1.0]]), noise
    )
    return F.avg_pool2d(mixed, 3, stride=1, padding=1)


def test_outputs_are_white():
    patches = random_patches(smooth_images(), 0)
    filters = whitening_filters(patches, 54)
    assert filters.shape == (54, 27)
    assert torch.equal(filters[27:], -filters[:27])
    outputs = (patches - patches.mean(0)) @ filters[:27].T
    covariance = outputs.T @ outputs / len(outputs)
    variances = torch.linalg.eigvalsh(torch.cov(patches.T, correction=0)).flip(0)
    # the floor keeps the weakest directions from being noise blown up
    assert torch.allclose(covariance, torch.diag(variances / (variances + FLOOR)), atol=1e-3)
    before = torch.corrcoef(patches.T).abs().fill_diagonal_(0).max()
    assert before > 0.5


def test_grey_images_keep_the_random_layer():
    grey = smooth_images()[:, :1].expand(-1, 3, -1, -1).contiguous()
    assert len(whitening_filters(random_patches(grey, 0), 54)) == 0
    flat = torch.zeros(4, 3, 8, 8)
    assert len(whitening_filters(random_patches(flat, 0), 54)) == 0


def test_other_filters_and_other_layers_stay():
    layer = nn.Conv2d(3, 64, 3, bias=False)
    before = layer.weight.detach().clone()
    assert whiten_first_layer(layer, smooth_images(), 0) == 54
    assert torch.equal(layer.weight[54:], before[54:])
    assert not torch.equal(layer.weight[:54], before[:54])
    small = nn.Conv2d(3, 16, 3)
    assert whiten_first_layer(small, smooth_images(), 0) == 16
    assert first_3x3(nn.Sequential(layer, nn.Conv2d(64, 8, 3))) is layer
    assert first_3x3(nn.Sequential(nn.Conv2d(3, 64, 7), layer)) is None
    assert first_3x3(nn.Linear(3, 3)) is None
