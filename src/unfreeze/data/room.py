"""Disk space for caches: free bytes, and eviction of old entries."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SPARE_BYTES = 256 * 2**20  # disk space that caches leave free
RECENT_SECONDS = 3600.0  # a folder modified within this time may be in use by another run


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def make_room(
    around: Path,
    budget: int,
    needed: int,
    *,
    ours: Callable[[Path], bool],
    spared: Sequence[str] = (),
) -> list[str]:
    """Remove folders in `around`, least recently used first, until `needed` bytes fit `budget`.

    Keeps folders named in `spared`, with files that are not `ours`, or modified within the last
    hour. Returns the names of the removed folders.
    """
    folders = [folder for folder in around.glob("*") if folder.is_dir()]
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
    removed = []
    for folder in sorted(folders, key=_last_used):
        if sum(sizes.values()) + needed <= budget:
            break
        only_ours = all(ours(file) for file in folder.iterdir())
        if (
            only_ours
            and folder.name not in spared
            and time.time() - _last_used(folder) > RECENT_SECONDS
        ):
            shutil.rmtree(
                folder, ignore_errors=True
            )  # fails on some systems if another run uses it
            if not folder.exists():
                removed.append(folder.name)
                del sizes[folder]
    return removed


def _last_used(folder: Path) -> float:
    return max((file.stat().st_mtime for file in folder.iterdir()), default=folder.stat().st_mtime)
