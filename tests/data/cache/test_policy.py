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
