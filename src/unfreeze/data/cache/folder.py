"""The cache folder shared by runs: its location, its subfolders, and clearing it."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unfreeze.text import path_argument


def cache_folder() -> Path:
    """`UNFREEZE_CACHE`, else `unfreeze` in `XDG_CACHE_HOME`, else in `~/.cache`."""
    if folder := os.environ.get("UNFREEZE_CACHE"):
        return Path(path_argument(folder))
    return Path(path_argument(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "unfreeze"


@dataclass(frozen=True)
class CacheKind:
    """One subfolder of the cache: its contents, its size limit, and the names of its entries.

    `entry` is a pattern for the names in the subfolder. If entries are folders, `inside` is a
    pattern for the names of their files; if they are files, `inside` is None.
    """

    name: str
    holds: str
    bound: str
    entry: str
    inside: str | None


_UNFINISHED = r"\..+\.tmp"  # left by an interrupted write
CACHE_KINDS = (
    CacheKind(
        "features",
        "outputs of frozen layers",
        "16 GiB (finetune --cache-budget)",
        r"[0-9a-f]{40}",
        rf"\d+\.safetensors|used|{_UNFINISHED}",
    ),
    CacheKind(
        "pixels",
        "decoded images",
        "16 GiB (--store-budget)",
        r"[0-9a-f]{40}",
        rf"\d+-of-\d+\.pixels|used|{_UNFINISHED}",
    ),
    CacheKind("fetched", "downloaded datasets", "none", r"[0-9a-f]{24}", r".+"),
    CacheKind(
        "checks",
        "which images can be read",
        "none (a few bytes an image)",
        rf"[0-9a-f]{{40}}(\.\w+)*\.npz|{_UNFINISHED}",
        None,
    ),
)


@dataclass(frozen=True)
class CacheContents:
    """The current contents of one subfolder: number of files and bytes written by unfreeze.

    `foreign`: entries that unfreeze did not write. `stuck`: entries that could not be removed,
    with the reason.
    """

    kind: CacheKind
    path: Path
    files: int
    bytes: int
    foreign: tuple[Path, ...]
    stuck: tuple[str, ...] = ()


def cache_contents(kind: CacheKind, *, clear: bool = False) -> CacheContents:
    """Contents of a subfolder; `clear` removes the entries of unfreeze, but no foreign ones."""
    folder = cache_folder() / kind.name
    files = size = 0
    foreign, stuck = [], []
    for entry in _entries(folder):
        entry_files = _ours(entry, kind)
        if entry_files is None:
            foreign.append(entry)
            continue
        if clear:
            try:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            except OSError as error:  # owned by another user, or in use by a run
                stuck.append(f"{entry}: {error.strerror}")
            continue
        files, size = (
            files + len(entry_files),
            size + sum(file.stat().st_size for file in entry_files),
        )
    return CacheContents(kind, folder, files, size, tuple(foreign), tuple(stuck))


def _entries(folder: Path) -> Iterator[Path]:
    if folder.is_dir() and not folder.is_symlink():
        yield from sorted(folder.iterdir())


def _ours(entry: Path, kind: CacheKind) -> list[Path] | None:
    """The files of an entry that unfreeze wrote; None for foreign entries and for links."""
    if entry.is_symlink() or not re.fullmatch(kind.entry, entry.name):
        return None
    if kind.inside is None:
        return [entry] if entry.is_file() else None
    if not entry.is_dir():
        return None
    files = list(entry.iterdir())
    all_ours = all(
        file.is_file() and not file.is_symlink() and re.fullmatch(kind.inside, file.name)
        for file in files
    )
    return files if all_ours else None


RESERVED_BYTES = 256 * 2**20  # disk space that caches leave free
RECENT_SECONDS = 3600.0  # a folder modified within this time may be in use by another run


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def evict_caches(
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
