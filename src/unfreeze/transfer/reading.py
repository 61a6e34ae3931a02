"""Pictures in order, cut to the network's input, one batch ahead of whoever computes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from unfreeze.data.preprocess import Pixels, Preprocess

THREADS = 4  # decoding and resizing leave Python's lock; more threads only hold more pictures
Read = Callable[[], Pixels]


def in_order(
    reads: Iterable[Read], preprocess: Preprocess, *, batch_size: int, threads: int = THREADS
) -> Iterator[Tensor]:
    """uint8 [B, S, S, 3] of each `batch_size` pictures, in the order of `reads`.

    What a read raises is raised here, at the batch it belongs to.
    """

    def cut(read: Read) -> Pixels:
        return preprocess.pixels(read())

    source = iter(reads)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        coming = [pool.submit(cut, read) for read in islice(source, batch_size)]
        while coming:
            following = [pool.submit(cut, read) for read in islice(source, batch_size)]
            yield torch.from_numpy(np.stack([future.result() for future in coming]))
            coming = following
