"""The cache folder shared by runs: its location, its subfolders, and clearing it."""

import os
import re
import shutil
from collections.abc import Iterator
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

    @property
    def folder(self) -> Path:
        """Path of the subfolder."""
        return cache_folder() / self.name


_UNFINISHED = r"\..+\.tmp"  # left by an interrupted write
_CHUNKS = r"[0-9a-f]{40}", rf"\d+-of-\d+\.safetensors|used|{_UNFINISHED}"
FEATURE_CACHE = CacheKind(
    "features", "outputs of frozen layers", "16 GiB (finetune --cache-budget)", *_CHUNKS
)
PIXEL_CACHE = CacheKind("pixels", "decoded images", "16 GiB (--store-budget)", *_CHUNKS)
TUNING_CACHE = CacheKind(
    "tuning",
    "fastest settings, as pretrain --tune measured them",
    "256 files of a few KiB, 30 days",
    rf"[0-9a-f]{{40}}\.json|{_UNFINISHED}",
    None,
)
CACHE_KINDS = (
    FEATURE_CACHE,
    PIXEL_CACHE,
    CacheKind("fetched", "downloaded datasets", "none", r"[0-9a-f]{24}", r".+"),
    CacheKind(
        "checks",
        "which images can be read",
        "none (a few bytes an image)",
        rf"[0-9a-f]{{40}}(\.\w+)*\.npz|{_UNFINISHED}",
        None,
    ),
    TUNING_CACHE,
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
    folder = kind.folder
    files = size = 0
    foreign, stuck = [], []
    for entry in _entries(folder):
        entry_files = own_files(entry, kind)
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


def own_files(entry: Path, kind: CacheKind) -> list[Path] | None:
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


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
