"""The error for files that cannot be decoded, with a fixed set of reasons."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Literal

from unfreeze.errors import DataError

Reason = Literal[
    "empty",
    "not an image",
    "truncated",
    "bomb",
    "unreadable",
    "channels",
    "crashed",
    "hung",
    "left out",
]


class Undecodable(DataError):
    """A file that cannot be decoded: `reason` is one of Reason, `detail` explains it.

    `empty`: no bytes. `not an image`: no known signature. `truncated`: the end is missing. `bomb`:
    exceeds the limit of pixels, bytes or memory. `channels`: unsupported channels, or a requested
    channel is missing. `unreadable`: any other error. `crashed`, `hung`: the decoder crashed or
    exceeded the time limit. `left out`: on an ignore list.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(
            f"The image cannot be decoded ({reason}): {detail}.",
            "Replace or remove the file.",
        )
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Undecodable"], tuple[Reason, str]]:
        return Undecodable, (self.reason, self.detail)


def reset_after_fork() -> None:
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
