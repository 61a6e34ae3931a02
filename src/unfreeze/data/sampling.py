"""Epochs that have the same number of images of every class."""

from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.loader import Ids, Order
from unfreeze.data.views.draws import permutation

CHOICE, SHUFFLE = -3, -4  # streams of random numbers of their own


def balanced(labels: npt.NDArray[Any], seed: int) -> Order:
    """The order of an epoch with as many images as `labels` [N] has, classes taken in turn.

    A class of n images gives each of them floor or ceil of its share over n times; which ones
    are more often changes from epoch to epoch. The epoch follows from (seed, epoch).
    """
    classes = np.unique(labels)
    members = [np.flatnonzero(labels == one).astype(np.int64) for one in classes]

    def order(epoch: int) -> Ids:
        share, extra = divmod(len(labels), len(classes))
        chosen = []
        for place, own in enumerate(members):
            # the classes that give one image more move on with the epochs
            count = share + ((place - epoch) % len(classes) < extra)
            whole, rest = divmod(count, len(own))
            some = permutation(seed, epoch, own, CHOICE)[:rest]
            chosen.append(np.concatenate([np.tile(own, whole), some]))
        drawn = np.concatenate(chosen)
        places = np.arange(len(drawn), dtype=np.int64)
        return drawn[permutation(seed, epoch, places, SHUFFLE)]

    return order
