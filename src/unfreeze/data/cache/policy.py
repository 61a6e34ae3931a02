"""Pixel cache policy: whether decoded images are cached in memory, on disk, or not, and why."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from unfreeze.data.cache.folder import PIXEL_CACHE, RESERVED_BYTES, free_bytes
from unfreeze.data.cache.memory_map import pixel_cache_key
from unfreeze.data.images.decode import header_size
from unfreeze.data.images.errors import Undecodable
from unfreeze.data.sources.source import Source
from unfreeze.data.validate.verdicts import UNKNOWN, VerdictCache
from unfreeze.errors import ResourceError

MEMORY = 2**30  # default limit in bytes of the in-memory pixel cache of a process
_ESTIMATE_FROM = 256  # number of headers sampled to estimate the size

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PixelCachePlan:
    """Location of the pixel cache, its estimated `bytes`, its limit `budget`, and the `reason`.

    `asked`: whether the user chose this location.
    """

    place: Literal["memory", "disk", "none"]
    bytes: int
    budget: int
    reason: str
    asked: bool = False


NO_PIXEL_CACHE = PixelCachePlan("none", 0, 0, "no pixel cache")


def memory_budget(gibibytes: float) -> int:
    """Limit in bytes of the in-memory cache for a --store-budget in GiB."""
    return min(int(gibibytes * 2**30), MEMORY)


def plan_pixel_cache(
    source: Source,
    rows: Rows,
    resize_to: int | None,
    *,
    store: str = "auto",
    gibibytes: float = 16.0,
    processes: int = 1,
    scan: str = "full",
) -> PixelCachePlan:
    """Chooses the pixel cache of `rows` from `--store`, `--store-budget` and the image sizes.

    Reads at most a sample of headers and writes nothing. ResourceError if the user chose the disk
    and it has too little free space.
    """
    budget = int(gibibytes * 2**30)
    if store == "off" or budget <= 0 or not len(rows):
        return PixelCachePlan("none", 0, 0, "decoded in every epoch, as requested")
    if scan != "full":
        return PixelCachePlan(
            "none",
            0,
            0,
            f"decoded in every epoch (--scan {scan} does not decode all files in advance)",
        )
    verdicts = VerdictCache(source)
    total = int(mean_bytes(source, rows, verdicts, resize_to) * len(rows))
    size = f"{total / 2**30:.2f} GiB of pixels"
    if total > budget:
        reason = f"decoded in every epoch: {size}, --store-budget is {gibibytes:g}"
        return PixelCachePlan("none", total, 0, reason)
    if store == "memory" or (store == "auto" and processes == 1 and total <= MEMORY):
        return PixelCachePlan("memory", total, budget, f"{size}, decoded once", store == "memory")
    missing = pixel_cache_key(source, rows, resize_to, total).store.missing_bytes(total)
    free = free_bytes(PIXEL_CACHE.folder)
    if missing and missing + RESERVED_BYTES > free:
        shortage = f"{size} do not fit in {PIXEL_CACHE.folder}: {free / 2**30:.1f} GiB free"
        if store == "disk":
            raise ResourceError(
                f"{shortage}.",
                "Free disk space, set UNFREEZE_CACHE to a larger disk, or use --store off.",
            )
        return PixelCachePlan("none", total, 0, f"decoded in every epoch: {shortage}")
    sharing = f"shared by {processes} processes and later runs" if processes > 1 else "decoded once"
    reused = "" if missing else ", reused from an earlier run"
    limit = f"at most {gibibytes:g} GiB (--store-budget)"
    reason = f"{size}, memory-mapped in {PIXEL_CACHE.folder}{reused}: {sharing}; {limit}"
    return PixelCachePlan("disk", total, budget, reason, store == "disk")


def mean_bytes(source: Source, rows: Rows, verdicts: VerdictCache, resize_to: int | None) -> float:
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


_GROWTH = 1.25


class MemoryPixelCache:
    """uint8 pixels [H, W, 3] by row of a source; forked workers share its one buffer.

    `resize_to`: the largest shorter side (None: not resized). `offsets`: -1 for rows that are not
    cached. The pixels equal those of decoding and resizing the image.
    """

    def __init__(self, rows: int, *, capacity: int, resize_to: int | None) -> None:
        self.resize_to = resize_to
        self.buffer: npt.NDArray[np.uint8] = np.empty(capacity, np.uint8)
        self.offsets: npt.NDArray[np.int64] = np.full(rows, -1, np.int64)
        self.shapes: npt.NDArray[np.int32] = np.zeros((rows, 2), np.int32)
        self.used = 0

    def add(self, row: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Adds an image; the buffer grows if necessary."""
        end = self.used + pixels.size
        if end > len(self.buffer):
            larger = np.empty(max(end, int(len(self.buffer) * _GROWTH)), np.uint8)
            larger[: self.used] = self.buffer[: self.used]
            self.buffer = larger
        self.buffer[self.used : end] = pixels.reshape(-1)
        self.offsets[row], self.shapes[row], self.used = self.used, pixels.shape[:2], end

    def __contains__(self, row: int) -> bool:
        return bool(self.offsets[row] >= 0)

    def __getitem__(self, row: int) -> npt.NDArray[np.uint8]:
        """A view [H, W, 3], read-only by convention; KeyError if the row is not cached."""
        start = int(self.offsets[row])
        if start < 0:
            raise KeyError(row)
        height, width = (int(side) for side in self.shapes[row])
        return self.buffer[start : start + height * width * 3].reshape(height, width, 3)
