"""Paths for libraries that accept only UTF-8, while names on Linux are any bytes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def utf8_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to the existing file whose text is valid UTF-8: `path` itself, or its descriptor's."""
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:  # only where names are bytes
        with Path(path).open("rb") as file:
            yield Path(f"/proc/self/fd/{file.fileno()}")
    else:
        yield Path(path)
