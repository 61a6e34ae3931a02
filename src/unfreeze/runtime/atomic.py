"""Atomic file writes: neither a reader nor a crash leaves a partial file."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unfreeze.errors import ResourceError
from unfreeze.text import clean_all, without_surrogates

_FULL = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk is full",
    errno.EFBIG: "File size limit reached (ulimit -f, or the file system)",
}


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block succeeds.

    The data is synced to disk (fsync) before the rename. A full disk raises ResourceError and
    leaves the previous file intact.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # shorten the name, so that prefix and suffix fit the limit of the file system
        start = f".{target.name[:40]}."
        handle, name = tempfile.mkstemp(prefix=start, suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        _sync(target.parent)
    except OSError as error:
        if is_full(error):
            raise disk_full(target, error) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def is_full(error: OSError) -> bool:
    """Whether a write failed because the disk, a quota or a size limit is full."""
    return error.errno in _FULL


def full_reason(error: OSError) -> str:
    """The cause of a write that failed with `is_full`, in words."""
    return _FULL[error.errno or errno.ENOSPC]


def disk_full(target: Path, error: OSError) -> ResourceError:
    """The ResourceError for a write that failed with `is_full`."""
    return ResourceError(
        f"{full_reason(error)}: {target} could not be written; the previous file is intact.",
        "Free some space, then continue with --resume.",
    )


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically; surrogates are escaped."""
    write_bytes(path, without_surrogates(text).encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically; file names are written as text."""
    write_text(path, json.dumps(clean_all(value), indent=2, ensure_ascii=False) + "\n")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no fsync of a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    # the umask can only be read by setting it
    mask = os.umask(0)
    os.umask(mask)
    return mask
