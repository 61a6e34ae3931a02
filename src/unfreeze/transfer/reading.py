"""Decodes and preprocesses images in order, prefetching one batch."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from unfreeze.data.preprocess import Pixels, Preprocess
from unfreeze.data.undecodable import Undecodable

THREADS = 4  # decoding and resizing release the GIL; more threads only use more memory
Read = Callable[[], Pixels]
Failure = OSError | Undecodable


def in_order(
    reads: Iterable[Read],
    preprocess: Preprocess,
    *,
    batch_size: int,
    skip: Callable[[int, Failure], None] | None = None,
) -> Iterator[Tensor]:
    """Batches uint8 [B, S, S, 3] of `batch_size` images, in the order of `reads`.

    For an image that cannot be read, `skip(position, error)` is called and the image is left out;
    without `skip` its error is raised.
    """

    def load(read: Read) -> Pixels | Failure:
        try:
            return preprocess.pixels(read())
        except (OSError, Undecodable) as error:
            if skip is None:
                raise
            return error

    source, before = iter(reads), 0
    with ThreadPoolExecutor(THREADS) as pool:
        current = [pool.submit(load, read) for read in islice(source, batch_size)]
        while current:
            following = [pool.submit(load, read) for read in islice(source, batch_size)]
            batch = []
            for position, future in enumerate(current, before):
                result = future.result()
                if isinstance(result, np.ndarray):
                    batch.append(result)
                elif skip is not None:
                    skip(position, result)
            before += len(current)
            if batch:
                yield torch.from_numpy(np.stack(batch))
            current = following
