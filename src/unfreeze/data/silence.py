"""Suppresses the warnings and log messages of Pillow while any thread decodes."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any


def alone() -> None:
    """Resets the state in a forked process, which has no other threads."""
    _Silence.lock, _Silence.users = threading.Lock(), 0


class _Silence:
    """State shared by all threads: number of users, and what to restore."""

    lock = threading.Lock()
    users = 0
    entry: Any = None  # our entry in warnings.filters
    level = logging.NOTSET  # previous level of the logger of Pillow


@contextlib.contextmanager
def pillow_silenced() -> Iterator[None]:
    """Suppresses the warnings and log messages of Pillow in all threads."""
    # warnings.catch_warnings is not thread-safe: one shared filter with a use count
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
