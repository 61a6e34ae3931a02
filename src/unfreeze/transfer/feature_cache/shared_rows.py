"""A dataset whose cached features several runs share, as in cross-validation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unfreeze.data.loading.dataset import ImageDataset


@dataclass(frozen=True)
class SharedCachePool:
    """All images of those runs, as a training and as a validation dataset.

    Random views use `seed` in every run. `digest("train")`, `digest("val")`: hex digest of the
    images' contents.
    """

    train: ImageDataset
    val: ImageDataset
    seed: int
    digest: Callable[[str], str]

    def rows(self, images: ImageDataset) -> Tensor:
        """Rows of these images in the pool, int64 [N]; KeyError if one is missing."""
        rows = self.train.index.rows
        order = np.argsort(rows, kind="stable")
        wanted = images.index.rows
        ranks = np.searchsorted(rows, wanted, sorter=order).clip(max=len(rows) - 1)
        positions = order[ranks]
        if not np.array_equal(rows[positions], wanted):
            raise KeyError("an image is not in the pool")
        return torch.from_numpy(positions.astype(np.int64))
