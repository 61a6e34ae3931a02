"""`cache`: lists the caches, their paths and sizes, or removes them."""

from dataclasses import asdict, dataclass
from typing import Any

from unfreeze.config.commands import CacheSettings
from unfreeze.config.layering import load_settings
from unfreeze.data.cache.folder import CACHE_KINDS, cache_contents, cache_folder
from unfreeze.reports.results_data import cache_display
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.console import Console
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.notebook import python_console


@dataclass(frozen=True)
class CacheEntry:
    """One kind of cache: number of files, bytes, and the default limit (`bound`)."""

    name: str
    holds: str
    path: str
    files: int
    bytes: int
    bound: str


@dataclass(frozen=True, repr=False)
class CacheResult(Displayed):
    """The caches below `folder` (set by UNFREEZE_CACHE); `cleared`: bytes removed.

    `foreign`: files and folders that unfreeze did not write, never removed; `stuck`: files that
    could not be removed, with the reason.
    """

    folder: str
    entries: list[CacheEntry]
    bytes: int
    cleared: int
    foreign: list[str]
    stuck: list[str]

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return cache_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per kind of cache."""
        return [asdict(entry) for entry in self.entries]


@python_call(CacheSettings)
def cache(*, progress: bool | None = None, **settings: Any) -> CacheResult:
    """List the caches with path and size; with `clear=True` remove them."""
    return run_cache(load_settings(CacheSettings, settings), python_console(progress))


def run_cache(settings: CacheSettings, console: Console) -> CacheResult:
    """The same from a settings object."""
    bytes_before = sum(cache_contents(kind).bytes for kind in CACHE_KINDS)
    stuck: list[str] = []
    if settings.clear:
        stuck = [
            message for kind in CACHE_KINDS for message in cache_contents(kind, clear=True).stuck
        ]
    caches = [cache_contents(kind) for kind in CACHE_KINDS]
    size = sum(usage.bytes for usage in caches)
    return CacheResult(
        folder=str(cache_folder()),
        entries=[
            CacheEntry(
                name=usage.kind.name,
                holds=usage.kind.holds,
                path=str(usage.path),
                files=usage.files,
                bytes=usage.bytes,
                bound=usage.kind.bound,
            )
            for usage in caches
        ],
        bytes=size,
        cleared=bytes_before - size if settings.clear else 0,
        foreign=[str(path) for usage in caches for path in usage.foreign],
        stuck=stuck,
    )
