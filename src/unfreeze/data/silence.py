"""Pillow's warnings and log, kept to itself while any thread decodes."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any


def alone() -> None:
    """In a forked process: whoever wanted silence stayed behind."""
    _Silence.lock, _Silence.users = threading.Lock(), 0


class _Silence:
    """How many threads want Pillow silent, and what stands for them meanwhile."""

    lock = threading.Lock()
    users = 0
    entry: Any = None  # the filter of warnings
    level = logging.NOTSET  # of Pillow's loggers, before


@contextlib.contextmanager
def pillow_silenced() -> Iterator[None]:
    """Nothing that Pillow warns of or logs is told meanwhile, by any thread."""
    # warnings.catch_warnings swaps global state and is not safe with threads: one filter, counted
    logger = logging.getLogger("PIL")
    with _Silence.lock:
        if not _Silence.users:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _Silence.entry, _Silence.level = warnings.filters[0], logger.level
            logger.setLevel(logging.CRITICAL + 1)
        _Silence.users += 1
    try:
        yield
    finally:
        with _Silence.lock:
            _Silence.users -= 1
            if not _Silence.users:
                logger.setLevel(_Silence.level)
                if _Silence.entry in warnings.filters:
                    warnings.filters.remove(_Silence.entry)  # type: ignore[attr-defined]
                    warnings._filters_mutated()  # type: ignore[attr-defined]
