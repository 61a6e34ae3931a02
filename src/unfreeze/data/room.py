"""Room on the disk for what is kept between runs: how much is free, and who makes place."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SPARE_BYTES = 256 * 2**20  # of the disk that is left to others
RECENT_SECONDS = 3600.0  # a folder changed since then may be in another run's hands


def free_bytes(place: Path) -> int:
    """Room on the disk where `place` is, or will be."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def make_room(
    around: Path,
    budget: int,
    needed: int,
    *,
    ours: Callable[[Path], bool],
    spared: Sequence[str] = (),
) -> list[str]:
    """Remove folders in `around`, the longest unwanted first, until `needed` more fit `budget`.

    What `spared` names, what holds a file that is not `ours` and what changed within the hour
    stays. Returns the names of what was removed.
    """
    folders = [place for place in around.glob("*") if place.is_dir()]
    sizes = {place: sum(file.stat().st_size for file in place.iterdir()) for place in folders}
    removed = []
    for place in sorted(folders, key=_last_wanted):
        if sum(sizes.values()) + needed <= budget:
            break
        known = all(ours(file) for file in place.iterdir())
        if (
            known
            and place.name not in spared
            and time.time() - _last_wanted(place) > RECENT_SECONDS
        ):
            shutil.rmtree(place, ignore_errors=True)  # in use by another run on some systems
            if not place.exists():
                removed.append(place.name)
                del sizes[place]
    return removed


def _last_wanted(place: Path) -> float:
    return max((file.stat().st_mtime for file in place.iterdir()), default=place.stat().st_mtime)
