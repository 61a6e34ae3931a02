"""Class-balanced sampling."""

from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.loader import Ids, Order
from unfreeze.data.views.draws import permutation

CHOICE, SHUFFLE = -3, -4  # separate random streams


def balanced(labels: npt.NDArray[Any], seed: int) -> Order:
    """A class-balanced order for `Loader.order`, with N images per epoch for `labels` [N].

    Each class gets an equal share of the epoch. Each of its n images occurs floor(share / n) or
    ceil(share / n) times; which ones occur more often changes with the epoch. The order depends
    only on (seed, epoch).
    """
    classes = np.unique(labels)
    members = [np.flatnonzero(labels == label).astype(np.int64) for label in classes]

    def order(epoch: int) -> Ids:
        share, extra = divmod(len(labels), len(classes))
        parts = []
        for class_id, images in enumerate(members):
            # the classes with one more image rotate over the epochs
            count = share + ((class_id - epoch) % len(classes) < extra)
            repeats, rest = divmod(count, len(images))
            remainder = permutation(seed, epoch, images, CHOICE)[:rest]
            parts.append(np.concatenate([np.tile(images, repeats), remainder]))
        selected = np.concatenate(parts)
        indices = np.arange(len(selected), dtype=np.int64)
        return selected[permutation(seed, epoch, indices, SHUFFLE)]

    return order
