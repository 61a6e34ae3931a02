"""Maps of large images: tiles cover every pixel, and blending changes no value they agree on."""

import numpy as np
import pytest
import torch

from unfreeze.tasks.segmentation.crops import mirrored
from unfreeze.transfer.tiles import tile_starts, tiled_maps


@pytest.mark.parametrize(("length", "tile"), [(10, 32), (32, 32), (33, 32), (100, 32), (64, 32)])
def test_tiles_cover_a_side_and_overlap(length, tile):
    starts = tile_starts(length, tile)
    assert starts[0] == 0 and starts[-1] == max(0, length - tile)
    steps = np.diff(starts)
    assert (steps > 0).all() and (steps <= tile * 0.75 + 0.5).all()


@pytest.mark.parametrize("size", [(40, 100), (32, 32), (20, 50), (7, 9), (97, 33)])
def test_a_network_of_single_pixels_gives_the_same_map(size):
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (*size, 3)).astype(np.uint8)

    def forward(batch):
        assert batch.shape[1:] == (32, 32, 3)
        return batch.float().permute(0, 3, 1, 2) * 2 + 1

    maps = tiled_maps(forward, image, (32, 32))
    assert maps.shape == (1, 3, *size)
    wanted = torch.from_numpy(image).float().permute(2, 0, 1)[None] * 2 + 1
    torch.testing.assert_close(maps, wanted)


def test_the_border_of_a_tile_counts_less_than_its_middle():
    image = np.zeros((8, 14, 3), np.uint8)
    count = iter((0.0, 1.0))

    def forward(batch):
        return torch.stack([torch.full((1, 8, 8), next(count)) for _ in batch])

    row = tiled_maps(forward, image, (8, 8))[0, 0, 4]
    assert row[0] == 0 and row[-1] == 1 and (row.diff() >= 0).all()
    assert ((row > 0) & (row < 1)).sum() == 2  # two columns of overlap, blended


def test_small_images_are_mirrored():
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    padded = mirrored(image, (2, 4))
    assert padded.shape == (2, 4, 3) and padded[0, :, 0].tolist() == [0, 3, 3, 0]
    assert mirrored(padded, (2, 2)) is padded
