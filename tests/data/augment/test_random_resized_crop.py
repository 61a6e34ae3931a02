import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from unfreeze.data.augment.config import CropSpec
from unfreeze.data.augment.parameters import uniforms
from unfreeze.data.augment.random_resized_crop import (
    DRAWS,
    random_boxes,
    resized_crop,
    rotated_crop,
)

N = 4000


@pytest.mark.parametrize("sides", [(64, 96), (40, 40), (30, 200)])
@pytest.mark.parametrize("scale", [(0.14, 1.0), (0.05, 0.14)])
def test_boxes_are_distributed_as_torchvisions(sides, scale):
    spec = CropSpec(scale=scale)
    mine = random_boxes(np.tile(sides, (N, 1)), uniforms(0, 0, np.arange(N), 0, DRAWS), spec)
    torch.manual_seed(0)
    image = torch.empty(3, *sides)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(N)]
    )
    assert (mine[:, :2] >= 0).all() and (mine[:, 2:] > 0).all()
    assert (mine[:, :2] + mine[:, 2:] <= np.array(sides)).all()
    spread = np.sqrt((mine.var(0) + theirs.var(0)) / N)
    assert (np.abs(mine.mean(0) - theirs.mean(0)) <= 3.5 * spread + 1e-9).all()
    assert (np.abs(mine.std(0) / np.maximum(theirs.std(0), 1e-9) - 1) < 0.1)[
        theirs.std(0) > 0
    ].all()


@pytest.mark.parametrize("box", [(3, 5, 40, 50), (0, 0, 64, 96), (10, 20, 12, 9), (2, 2, 40, 12)])
def test_pixels_equal_pillows_bilinear(box):
    rng = np.random.default_rng(1)
    image = np.asarray(
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).resize((96, 64))
    )
    top, left, height, width = box
    mine = resized_crop(image, np.array(box), 24)
    part = Image.fromarray(image[top : top + height, left : left + width])
    theirs = np.asarray(part.resize((24, 24), Image.Resampling.BILINEAR))
    assert np.abs(mine.astype(int) - theirs.astype(int)).max() <= 2


def test_turning_by_nothing_is_resizing_and_by_a_quarter_is_a_quarter():
    image = np.zeros((16, 16, 3), np.uint8)
    image[2:6, 3:13] = 255
    box = np.array([0, 0, 16, 16])
    assert np.array_equal(rotated_crop(image, box, 16, 0.0), image)
    quarter = rotated_crop(image, box, 16, 90.0)
    assert (
        np.abs(quarter.astype(int) - np.rot90(image, 1).astype(int)).mean() < 2
        or np.abs(quarter.astype(int) - np.rot90(image, -1).astype(int)).mean() < 2
    )
