"""Images in order, cut to the network's input, one batch ahead of whoever computes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from unfreeze.data.preprocess import Pixels, Preprocess
from unfreeze.data.undecodable import Undecodable

THREADS = 4  # decoding and resizing leave Python's lock; more threads only hold more images
Read = Callable[[], Pixels]
Failure = OSError | Undecodable


def in_order(
    reads: Iterable[Read],
    preprocess: Preprocess,
    *,
    batch_size: int,
    skip: Callable[[int, Failure], None] | None = None,
) -> Iterator[Tensor]:
    """uint8 [B, S, S, 3] of each `batch_size` images, in the order of `reads`.

    A image that cannot be read is left out and told to `skip` with its place; without `skip`
    its error is raised.
    """

    def cut(read: Read) -> Pixels | Failure:
        try:
            return preprocess.pixels(read())
        except (OSError, Undecodable) as error:
            if skip is None:
                raise
            return error

    source, before = iter(reads), 0
    with ThreadPoolExecutor(THREADS) as pool:
        coming = [pool.submit(cut, read) for read in islice(source, batch_size)]
        while coming:
            following = [pool.submit(cut, read) for read in islice(source, batch_size)]
            batch = []
            for place, future in enumerate(coming, before):
                result = future.result()
                if isinstance(result, np.ndarray):
                    batch.append(result)
                elif skip is not None:
                    skip(place, result)
            before += len(coming)
            if batch:
                yield torch.from_numpy(np.stack(batch))
            coming = following
