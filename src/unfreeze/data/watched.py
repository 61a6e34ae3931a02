"""Work on the rows of a source, where what it holds cannot harm this process."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from unfreeze.data.sources import Source
from unfreeze.data.sources.builtin import ArraySource
from unfreeze.data.supervised import MEMORY, SECONDS, supervised
from unfreeze.runtime.threads import processors

_WORTH = 2**22  # bytes of files that take about as long as a process takes to start


def watched(
    source: Source,
    work: Callable[[int], Any],
    rows: list[int],
    *,
    workers: int | None,
    seconds: float | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> Iterator[tuple[int, Any]]:
    """(row, work(row) or a Lost) as they are done; `workers` None: as many as there are processors.

    In processes of bounded time and memory, as many as the files are worth; here where the source
    holds pixels, which no decoder looks at. `warn` is told where no process can be started.
    """
    if isinstance(source, ArraySource):
        return ((row, work(row)) for row in rows)
    worth = 1 + int(source.sizes[rows].sum()) // _WORTH
    count = min(workers or processors(), worth)
    return supervised(work, rows, count, seconds=seconds or SECONDS, memory=MEMORY, warn=warn)
