"""Pixel cache policy: whether decoded images are cached in memory, on disk, or not, and why."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from unfreeze.data.decode import header_size
from unfreeze.data.mapped import ENDING, Wanted, pixels_folder, wanted
from unfreeze.data.room import SPARE_BYTES, free_bytes
from unfreeze.data.sources import Source
from unfreeze.data.undecodable import Undecodable
from unfreeze.data.verdicts import UNKNOWN, Verdicts
from unfreeze.errors import ResourceError

MEMORY = 2**30  # default limit in bytes of the in-memory pixel cache of a process
_ESTIMATE_FROM = 256  # number of headers sampled to estimate the size

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Holding:
    """Location of the pixel cache, its estimated `bytes`, its limit `budget`, and the `reason`.

    `asked`: whether the user chose this location.
    """

    place: Literal["memory", "disk", "none"]
    bytes: int
    budget: int
    reason: str
    asked: bool = False


NOTHING = Holding("none", 0, 0, "no pixel cache")


def in_memory(gibibytes: float) -> int:
    """Limit in bytes of the in-memory cache for a --store-budget in GiB."""
    return min(int(gibibytes * 2**30), MEMORY)


def holding(
    source: Source,
    rows: Rows,
    resize_to: int | None,
    *,
    store: str = "auto",
    gibibytes: float = 16.0,
    processes: int = 1,
    scan: str = "full",
) -> Holding:
    """Chooses the pixel cache of `rows` from `--store`, `--store-budget` and the image sizes.

    Reads at most a sample of headers and writes nothing. ResourceError if the user chose the disk
    and it has too little free space.
    """
    budget = int(gibibytes * 2**30)
    if store == "off" or budget <= 0 or not len(rows):
        return Holding("none", 0, 0, "decoded in every epoch, as requested")
    if scan != "full":
        return Holding(
            "none",
            0,
            0,
            f"decoded in every epoch (--scan {scan} does not decode all files in advance)",
        )
    verdicts = Verdicts(source)
    total = int(mean_bytes(source, rows, verdicts, resize_to) * len(rows))
    size = f"{total / 2**30:.2f} GiB of pixels"
    if total > budget:
        reason = f"decoded in every epoch: {size}, --store-budget is {gibibytes:g}"
        return Holding("none", total, 0, reason)
    if store == "memory" or (store == "auto" and processes == 1 and total <= MEMORY):
        return Holding("memory", total, budget, f"{size}, decoded once", store == "memory")
    missing = _missing_bytes(wanted(source, rows, resize_to, total), total)
    free = free_bytes(pixels_folder())
    if missing and missing + SPARE_BYTES > free:
        shortage = f"{size} do not fit in {pixels_folder()}: {free / 2**30:.1f} GiB free"
        if store == "disk":
            raise ResourceError(
                f"{shortage}.",
                "Free disk space, set UNFREEZE_CACHE to a larger disk, or use --store off.",
            )
        return Holding("none", total, 0, f"decoded in every epoch: {shortage}")
    sharing = f"shared by {processes} processes and later runs" if processes > 1 else "decoded once"
    reused = "" if missing else ", reused from an earlier run"
    limit = f"at most {gibibytes:g} GiB (--store-budget)"
    reason = f"{size}, memory-mapped in {pixels_folder()}{reused}: {sharing}; {limit}"
    return Holding("disk", total, budget, reason, store == "disk")


def _missing_bytes(want: Wanted, total: int) -> int:
    present = sum(file.stat().st_size for file in want.folder.glob(f"*{ENDING}"))
    complete = all(want.path(number).exists() for number in range(want.chunks))
    return 0 if complete else max(total - present, 0)


def mean_bytes(source: Source, rows: Rows, verdicts: Verdicts, resize_to: int | None) -> float:
    """Mean bytes of pixels per image: from known sizes, else from a sample of headers."""
    if (verdicts.states[rows] != UNKNOWN).all():
        sizes = verdicts.sizes[rows].astype(np.float64)
    else:
        sample = rows[np.linspace(0, len(rows) - 1, min(_ESTIMATE_FROM, len(rows))).astype(int)]
        sizes = np.array([_image_size(source, int(row)) for row in sample], np.float64)
    if resize_to is not None:
        shorter = np.maximum(sizes.min(axis=1, keepdims=True), 1)
        sizes = sizes * np.minimum(1, resize_to / shorter)
    return float(sizes.prod(axis=1).mean() * 3)


def _image_size(source: Source, row: int) -> tuple[int, int]:
    try:
        data = source.read(row)
        return data.shape[:2] if isinstance(data, np.ndarray) else header_size(data)
    except (OSError, Undecodable):
        return 0, 0
