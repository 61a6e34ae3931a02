"""Small images on the device: the same batches as those of the plain loader."""

import numpy as np
import pytest
import torch

from unfreeze.data.augment.config import preset
from unfreeze.data.augment.multicrop import MultiCropTransform
from unfreeze.data.cache.policy import MemoryPixelCache
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.device_loader import DeviceImages, DeviceLoader, bytes_held
from unfreeze.data.loading.loader import Loader
from unfreeze.data.sources.builtin import ArraySource
from unfreeze.errors import ResourceError

CPU = torch.device("cpu")
SPECS = [preset("small", 16, (0.2, 1.0))] * 2 + [preset("small", 8, (0.1, 0.3))]


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 5, 7, 3), np.uint8)
    pixels = pixels.repeat(4, 1).repeat(4, 2)
    names = [f"{k}.png" for k in range(40)]
    return ImageDataset(build_index(ArraySource("noise", pixels, names, ["train"] * 40)))


def loaders(images, rank=0, world=1):
    positions = np.arange(3, 40)
    known = {
        "images": images,
        "make": MultiCropTransform(5, SPECS),
        "batch_size": 8,
        "seed": 5,
        "drop_last": True,
        "positions": positions,
        "rank": rank,
        "world": world,
    }
    held = DeviceImages(images, positions, CPU, most=2**20)
    return Loader(**known), DeviceLoader(held, SPECS, **known)


def test_the_batches_are_those_of_the_plain_loader(images):
    plain, held = loaders(images)
    assert held.steps_per_epoch == plain.steps_per_epoch == 4
    for one, other in zip(plain.stream(2, 7), held.stream(2, 7), strict=True):
        assert (one.step, one.epoch) == (other.step, other.epoch)
        assert np.array_equal(one.ids, other.ids) and torch.equal(one.target, other.target)
        for a, b in zip(one.views, other.views, strict=True):
            apart = (a.int() - b.int()).abs().float()
            assert a.shape == b.shape and apart.mean() < 0.5 and apart.quantile(0.98) <= 2


def test_processes_share_a_batch(images):
    whole = next(loaders(images)[1].stream(0, 1))
    halves = [next(loaders(images, rank, 2)[1].stream(0, 1)) for rank in (0, 1)]
    for k, view in enumerate(whole.views):
        assert torch.equal(view, torch.cat([half.views[k] for half in halves]))


def test_these_are_cut_too(images):
    (batch,) = loaders(images)[1].these([np.array([4, 9])], epoch=2)
    assert batch.epoch == 2 and [view.shape[0] for view in batch.views] == [2, 2, 2]


def test_too_many_bytes_are_refused_with_a_way_out(images):
    with pytest.raises(ResourceError, match="--views-on host"):
        DeviceImages(images, np.arange(40), CPU, most=1000)


def test_sizes_are_known_from_the_store_and_without_one_not(images):
    assert bytes_held(images, np.arange(40)) is None
    store = MemoryPixelCache(40, capacity=100, resize_to=None)
    for row in range(40):
        store.add(row, images[row][: 10 + row % 3])
    stored = ImageDataset(images.index, store)
    assert bytes_held(stored, np.arange(40)) == 40 * 3 * 12 * 28
    assert bytes_held(stored, np.array([0, 3])) == 2 * 3 * 10 * 28
    held = DeviceImages(stored, np.array([0, 1, 1, 5]), CPU, most=2**20)
    assert held.pixels.shape == (3, 3, 12, 28)
    assert torch.equal(held.pixels[0, :, :10].permute(1, 2, 0), torch.from_numpy(stored[0]))
