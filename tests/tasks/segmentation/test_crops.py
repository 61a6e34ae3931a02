"""Images and masks are cut by the same draw, and masks keep their values."""

import numpy as np
import pytest
import torch

from unfreeze.data.augment.config import CropSpec
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.tasks.segmentation.crops import MaskedCrops, cropped_mask, resized_mask

PLAIN = CropSpec(scale=(0.2, 1.0), jitter=0.0, grey=0.0, blur=0.0)
SHAPE = Preprocess(64, 64, fit="squash", width=96)


def blocks(seed=0, size=(60, 100)):
    """A mask of blocks of values 0, 60, 120, 180, and an image whose channels are the mask."""
    values = np.random.default_rng(seed).integers(0, 4, (6, 10)) * 60
    mask = np.kron(values, np.ones((size[0] // 6, size[1] // 10))).astype(np.uint8)
    return np.stack([mask] * 3, -1), mask


@pytest.mark.parametrize("fit", ["squash", "tile"])
@pytest.mark.parametrize("size", [(60, 100), (240, 300)])
def test_the_mask_lies_where_the_image_lies(fit, size):
    shape = Preprocess(32, 32, fit=fit, width=64)
    image, mask = blocks(size=size)
    make = MaskedCrops(lambda position: mask, PLAIN, shape, seed=3)
    ids = np.arange(24)
    (views,), targets = make([image] * 24, ids, epoch=1)
    assert views.shape == (24, 32, 64, 3) and targets.shape == (24, 32, 64)
    assert views.dtype == torch.uint8 and targets.dtype == torch.int64
    assert set(targets.unique().tolist()) <= set(np.unique(mask).tolist())  # no value between
    away = (views[..., 0].long() - targets).abs() > 30  # only at borders, where images are smooth
    assert away.float().mean() < 0.12
    flipped = MaskedCrops(lambda position: mask[:, ::-1], PLAIN, shape, seed=3)
    other = flipped([image] * 24, ids, epoch=1)[1]
    assert ((views[..., 0].long() - other).abs() > 30).float().mean() > 0.3  # the test can fail


def test_a_reduced_image_of_the_pixel_cache_gets_the_same_part_of_its_mask():
    image, mask = blocks(size=(240, 300))
    small = image[::2, ::2]
    make = MaskedCrops(lambda position: mask, PLAIN, SHAPE, seed=0)
    (views,), targets = make([small] * 8, np.arange(8), epoch=0)
    assert ((views[..., 0].long() - targets).abs() > 30).float().mean() < 0.12


def test_crops_depend_on_seed_epoch_and_image_alone():
    image, mask = blocks()
    make = MaskedCrops(lambda position: mask, CropSpec(), SHAPE, seed=5)
    (views,), targets = make([image] * 6, np.arange(6), epoch=2)
    (alone,), target = make([image], np.array([4]), epoch=2)
    assert torch.equal(views[4], alone[0]) and torch.equal(targets[4], target[0])
    for other in (make([image], np.array([4]), epoch=3), make([image], np.array([5]), epoch=2)):
        assert not torch.equal(other[0][0], alone)
    assert not torch.equal(targets[0], targets[1])


def test_colours_change_in_the_image_alone():
    image, mask = blocks()
    strong = CropSpec(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=1.0)
    square = Preprocess(60, 60, fit="squash")
    plain = CropSpec(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grey=0, blur=0)
    made = [
        MaskedCrops(lambda position: mask, spec, square, seed=0)([image], np.array([0]), 0)
        for spec in (strong, plain)
    ]
    assert torch.equal(made[0][1], made[1][1]) and not torch.equal(made[0][0][0], made[1][0][0])


def test_without_augmentation_the_view_is_the_input_of_validation():
    image, mask = blocks()
    (views,), targets = MaskedCrops(lambda position: mask, None, SHAPE, 0)(
        [image], np.array([0]), 7
    )
    assert np.array_equal(views[0].numpy(), SHAPE.pixels(image))
    assert np.array_equal(targets[0].numpy(), resized_mask(mask, (64, 96)))


def test_the_nearest_pixel():
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    sides = np.array([3, 4])
    assert resized_mask(mask, (3, 4)).tolist() == mask.tolist()
    box = np.array([1, 2, 2, 2])
    assert cropped_mask(mask, box, sides, (2, 2)).tolist() == [[6, 7], [10, 11]]
    assert cropped_mask(mask, box, sides, (4, 2)).tolist() == [[6, 7], [6, 7], [10, 11], [10, 11]]
