"""ImageDataset whose kept features serve several runs, each of which trains on some of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unfreeze.data.dataset import ImageDataset


@dataclass(frozen=True)
class Pool:
    """All images of those runs, read as training and as validation reads them.

    Random views are those of `seed` in every run. `digest("train")`, `digest("val")`: hex of what
    is in the images.
    """

    train: ImageDataset
    val: ImageDataset
    seed: int
    digest: Callable[[str], str]

    def rows(self, images: ImageDataset) -> Tensor:
        """Where these images stand in the pool, int64 [N]; KeyError where one does not."""
        rows = self.train.index.rows
        order = np.argsort(rows, kind="stable")
        wanted = images.index.rows
        places = np.searchsorted(rows, wanted, sorter=order).clip(max=len(rows) - 1)
        found = order[places]
        if not np.array_equal(rows[found], wanted):
            raise KeyError("a image is not in the pool")
        return torch.from_numpy(found.astype(np.int64))
