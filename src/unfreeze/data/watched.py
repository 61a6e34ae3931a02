"""Runs a function on rows of a source, in worker processes if the files may be harmful."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from unfreeze.data.sources import Source
from unfreeze.data.sources.builtin import ArraySource
from unfreeze.data.supervised import MEMORY, SECONDS, supervised
from unfreeze.runtime.threads import processors

_BYTES_PER_WORKER = 2**22  # bytes of files whose decoding takes as long as starting a process


def watched(
    source: Source,
    work: Callable[[int], Any],
    rows: list[int],
    *,
    workers: int | None,
    seconds: float | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> Iterator[tuple[int, Any]]:
    """Yields (row, work(row) or Lost) in order of completion; `workers` None: one per processor.

    Uses `supervised` with limits of time and memory, and fewer workers for small datasets. Array
    sources need no decoder and are processed here. `warn`: called if no process can be started.
    """
    if isinstance(source, ArraySource):
        return ((row, work(row)) for row in rows)
    useful = 1 + int(source.sizes[rows].sum()) // _BYTES_PER_WORKER
    count = min(workers or processors(), useful)
    return supervised(work, rows, count, seconds=seconds or SECONDS, memory=MEMORY, warn=warn)
