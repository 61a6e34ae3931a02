"""Whether decoded pixels are held between epochs, where, and why: memory, a memory map, or not."""

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

MEMORY = 2**30  # bytes that a process takes for pixels without being told to
_ESTIMATE_FROM = 256  # headers that the size is estimated from

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Holding:
    """Where pixels go: `bytes` of them are expected, at most `budget` taken; `reason` for people.

    `asked`: whether that place was asked for by name.
    """

    place: Literal["memory", "disk", "none"]
    bytes: int
    budget: int
    reason: str
    asked: bool = False


NOTHING = Holding("none", 0, 0, "no pixel cache")


def in_memory(gibibytes: float) -> int:
    """Bytes of memory for pixels under a budget that holds for the disk, too."""
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
    """Where the pixels of `rows` go, as `--store`, `--store-budget` and the headers say.

    Reads headers of a sample at most and writes nothing. ResourceError where the disk was asked
    for and has no room.
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
        why = f"decoded in every epoch: {size}, --store-budget is {gibibytes:g}"
        return Holding("none", total, 0, why)
    if store == "memory" or (store == "auto" and processes == 1 and total <= MEMORY):
        return Holding("memory", total, budget, f"{size}, decoded once", store == "memory")
    lacking = _lacking(wanted(source, rows, resize_to, total), total)
    free = free_bytes(pixels_folder())
    if lacking and lacking + SPARE_BYTES > free:
        full = f"{size} do not fit in {pixels_folder()}: {free / 2**30:.1f} GiB free"
        if store == "disk":
            raise ResourceError(
                f"{full}.",
                "Free disk space, set UNFREEZE_CACHE to a larger disk, or use --store off.",
            )
        return Holding("none", total, 0, f"decoded in every epoch: {full}")
    many = f"shared by {processes} processes and later runs" if processes > 1 else "decoded once"
    there = "" if lacking else ", reused from an earlier run"
    limit = f"at most {gibibytes:g} GiB (--store-budget)"
    why = f"{size}, memory-mapped in {pixels_folder()}{there}: {many}; {limit}"
    return Holding("disk", total, budget, why, store == "disk")


def _lacking(want: Wanted, total: int) -> int:
    there = sum(file.stat().st_size for file in want.folder.glob(f"*{ENDING}"))
    whole = all(want.path(number).exists() for number in range(want.chunks))
    return 0 if whole else max(total - there, 0)


def mean_bytes(source: Source, rows: Rows, verdicts: Verdicts, resize_to: int | None) -> float:
    """Bytes of pixels an image: from known sizes, where all are known, else from some headers."""
    if (verdicts.states[rows] != UNKNOWN).all():
        sizes = verdicts.sizes[rows].astype(np.float64)
    else:
        some = rows[np.linspace(0, len(rows) - 1, min(_ESTIMATE_FROM, len(rows))).astype(int)]
        sizes = np.array([_header(source, int(row)) for row in some], np.float64)
    if resize_to is not None:
        shorter = np.maximum(sizes.min(axis=1, keepdims=True), 1)
        sizes = sizes * np.minimum(1, resize_to / shorter)
    return float(sizes.prod(axis=1).mean() * 3)


def _header(source: Source, row: int) -> tuple[int, int]:
    try:
        data = source.read(row)
        return data.shape[:2] if isinstance(data, np.ndarray) else header_size(data)
    except (OSError, Undecodable):
        return 0, 0
