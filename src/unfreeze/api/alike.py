"""Checks that all processes of a run have the same images: each lists and decodes its own copy."""

from typing import NamedTuple

from unfreeze.data.index import Index
from unfreeze.data.sources.source import digest
from unfreeze.errors import DataError
from unfreeze.runtime.processes import Processes


class Seen(NamedTuple):
    """Images of a process: their number, and a digest of names and labels in order."""

    images: int
    names: str


def refuse_others(processes: Processes, *indexes: Index) -> None:
    """DataError if a process has other images than rank 0, which would end in a deadlock.

    Happens with local disks, and with a folder that is still being copied. Collective.
    """
    if processes.world == 1:
        return
    count = sum(map(len, indexes))
    names = "".join(digest(index.paths, index.labels) for index in indexes)
    everyone = processes.collected(Seen(count, names))
    processes.leads(lambda: _compare(everyone))


def _compare(everyone: list[Seen]) -> None:
    first = everyone[0]
    for rank, images in enumerate(everyone):
        if images != first:
            how = (
                f"{images.images:,}"
                if images.images != first.images
                else f"other {images.images:,}"
            )
            raise DataError(
                f"Rank {rank} has {how} usable images, rank 0 has {first.images:,}.",
                "All processes need the same files: copy them completely to every machine.",
            )
