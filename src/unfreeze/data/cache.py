"""Where what is known of data, and what was computed or fetched, is kept between runs."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unfreeze.text import given_path


def cache_folder() -> Path:
    """`UNFREEZE_CACHE`, else `unfreeze` in `XDG_CACHE_HOME`, else in `~/.cache`."""
    if own := os.environ.get("UNFREEZE_CACHE"):
        return Path(given_path(own))
    return Path(given_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "unfreeze"


@dataclass(frozen=True)
class Kind:
    """One folder of the cache: what it holds, what bounds it, and how its entries look.

    `entry` matches a name in the folder; where that is a folder, `inside` matches each of its
    files. `inside` None: entries are files.
    """

    name: str
    holds: str
    bound: str
    entry: str
    inside: str | None


_UNFINISHED = r"\..+\.tmp"  # what a killed write leaves
KINDS = (
    Kind(
        "features",
        "outputs of frozen layers",
        "16 GiB (finetune --cache-budget)",
        r"[0-9a-f]{40}",
        rf"\d+\.safetensors|used|{_UNFINISHED}",
    ),
    Kind(
        "pixels",
        "decoded images",
        "16 GiB (--store-budget)",
        r"[0-9a-f]{40}",
        rf"\d+-of-\d+\.pixels|used|{_UNFINISHED}",
    ),
    Kind("fetched", "downloaded datasets", "none", r"[0-9a-f]{24}", r".+"),
    Kind(
        "checks",
        "which images can be read",
        "none (a few bytes an image)",
        rf"[0-9a-f]{{40}}(\.\w+)*\.npz|{_UNFINISHED}",
        None,
    ),
)


@dataclass(frozen=True)
class Held:
    """One folder of the cache as it is: the entries that are ours, and what is not.

    `stuck`: what could not be removed, and why.
    """

    kind: Kind
    path: Path
    files: int
    bytes: int
    foreign: tuple[Path, ...]
    stuck: tuple[str, ...] = ()


def held(kind: Kind, *, clear: bool = False) -> Held:
    """What a folder of the cache holds; with `clear` our entries are removed, and nothing else."""
    folder = cache_folder() / kind.name
    files = size = 0
    foreign, stuck = [], []
    for entry in _entries(folder):
        found = _ours(entry, kind)
        if found is None:
            foreign.append(entry)
            continue
        if clear:
            try:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            except OSError as error:  # another user's, or a run writes to it
                stuck.append(f"{entry}: {error.strerror}")
            continue
        files, size = files + len(found), size + sum(file.stat().st_size for file in found)
    return Held(kind, folder, files, size, tuple(foreign), tuple(stuck))


def _entries(folder: Path) -> Iterator[Path]:
    if folder.is_dir() and not folder.is_symlink():
        yield from sorted(folder.iterdir())


def _ours(entry: Path, kind: Kind) -> list[Path] | None:
    """The files of an entry that we wrote; None for what is not ours, links among it."""
    if entry.is_symlink() or not re.fullmatch(kind.entry, entry.name):
        return None
    if kind.inside is None:
        return [entry] if entry.is_file() else None
    if not entry.is_dir():
        return None
    files = list(entry.iterdir())
    whole = all(
        file.is_file() and not file.is_symlink() and re.fullmatch(kind.inside, file.name)
        for file in files
    )
    return files if whole else None
