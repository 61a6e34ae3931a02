import numpy as np
import pytest

from unfreeze.data.cache.policy import MemoryPixelCache


def test_images_of_any_shape_come_back(made):
    images = {row: made.noise(3 + row, 5, seed=row) for row in (4, 0, 2)}
    store = MemoryPixelCache(6, capacity=10, resize_to=None)  # too small: it grows
    for row, pixels in images.items():
        store.add(row, pixels)
    for row, pixels in images.items():
        assert row in store
        assert np.array_equal(store[row], pixels)
        assert np.shares_memory(store[row], store.buffer)
    assert 1 not in store
    with pytest.raises(KeyError):
        store[1]
    assert store.used == sum(pixels.nbytes for pixels in images.values())


def test_blocks_of_one_shape(made):
    store = MemoryPixelCache(4, capacity=10_000, resize_to=None)
    for row in range(3):
        store.add(row, made.noise(seed=row))
    expected = np.stack([made.noise(seed=row) for row in range(3)])
    block = store.block(np.arange(3))
    assert np.array_equal(block, expected)
    assert np.shares_memory(block, store.buffer)
    assert np.array_equal(store.block(np.array([2, 0])), expected[[2, 0]])
    assert store.block(np.array([0, 3])) is None
    store.add(3, made.noise(5, 5))
    assert store.block(np.arange(4)) is None
