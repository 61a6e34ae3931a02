"""The memory-mapped pixel cache on disk, shared by all processes and later runs.

A chunk has the pixels of consecutive images in one flat tensor, and their sizes and offsets.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.cache.chunk_store import (
    CHUNK_BYTES,
    ChunkStore,
    TensorSpec,
    cache_key,
    existing_chunk_count,
)
from unfreeze.data.cache.folder import PIXEL_CACHE
from unfreeze.data.images.decode import DECODER
from unfreeze.data.sources.source import Source

_MIN_CHUNKS = 16  # so that several workers can share the work
_TENSORS = (
    TensorSpec("pixels", "U8", flat=True),
    TensorSpec("offsets", "I64"),
    TensorSpec("shapes", "I32", (4,)),
)

Rows = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PixelCacheKey:
    """Content of a cache: `rows` of `source`, shorter side at most `resize_to`, in `store`."""

    source: Source
    rows: Rows
    resize_to: int | None
    store: ChunkStore

    def part(self, number: int) -> Rows:
        """The rows of a chunk."""
        part = self.store.part(number)
        return self.rows[part.start : part.stop]


def pixel_cache_key(
    source: Source, rows: Rows, resize_to: int | None, total_bytes: float
) -> PixelCacheKey:
    """The key of a cache; `total_bytes` decides the number of chunks of a new one."""
    description = f"{source.fingerprint()} {DECODER} {source.intensity} {resize_to} "
    key = cache_key(description.encode() + rows.astype("<i8").tobytes())
    chunks = existing_chunk_count(PIXEL_CACHE.folder / key) or min(
        max(round(total_bytes / CHUNK_BYTES), _MIN_CHUNKS), len(rows)
    )
    store = ChunkStore(PIXEL_CACHE, key, len(rows), -(-len(rows) // chunks), _TENSORS)
    return PixelCacheKey(source, rows, resize_to, store)


class StoredImage(NamedTuple):
    """Resized pixels, and (height, width) before resizing."""

    pixels: Pixels
    size: tuple[int, int]


class PixelChunk(NamedTuple):
    """Mapped flat `pixels`; by row: the offset of its first, and its sizes (0 if unusable).

    `shapes` [n, 4]: height and width after and before resizing.
    """

    pixels: Pixels
    offsets: Rows
    shapes: npt.NDArray[np.int32]


@contextlib.contextmanager
def write_chunk(want: PixelCacheKey, number: int) -> Iterator[Callable[[StoredImage | None], None]]:
    """Writes a chunk, which appears when the block ends without an error.

    Yields a function that appends the images of its rows in order, None for an unusable one.
    ResourceError if the disk is full.
    """
    shapes: list[tuple[int, ...]] = []
    with want.store.write(number) as append:

        def add(image: StoredImage | None) -> None:
            if image is None:
                shapes.append((0, 0, 0, 0))
                return
            shapes.append((*image.pixels.shape[:2], *image.size))
            append("pixels", image.pixels.reshape(-1))

        yield add
        table = np.array(shapes, "<i4")
        sizes = _byte_counts(table)
        ends = np.cumsum(sizes)
        append("pixels", np.zeros(-ends[-1] % 8, np.uint8))  # aligns the tensors after it
        append("offsets", (ends - sizes).astype("<i8"))
        append("shapes", table)


def read_chunk(want: PixelCacheKey, number: int) -> PixelChunk:
    """A chunk, without reading its pixels; raises as `ChunkStore.read`."""
    tensors = want.store.read(number)
    return PixelChunk(*(tensors[spec.name].numpy() for spec in _TENSORS))


def _byte_counts(shapes: npt.NDArray[np.int32]) -> Rows:
    counts: Rows = shapes[:, :2].astype(np.int64).prod(axis=1) * 3
    return counts


class MappedPixelCache:
    """uint8 pixels [H, W, 3] by row of a source, from a complete cache on disk.

    The pixels equal those of decoding and resizing the image. Pickling stores only the key; other
    processes map the files again.
    """

    def __init__(self, want: PixelCacheKey) -> None:
        self.want, self.resize_to = want, want.resize_to
        count = len(want.source)
        self.shapes: npt.NDArray[np.int32] = np.zeros((count, 2), np.int32)
        self._chunk: npt.NDArray[np.int32] = np.full(count, -1, np.int32)
        self._offset: npt.NDArray[np.int64] = np.zeros(count, np.int64)
        self._pixels: list[Pixels] = []
        for number in range(want.store.chunks):
            chunk, rows = read_chunk(want, number), want.part(number)
            self.shapes[rows] = chunk.shapes[:, :2]
            self._chunk[rows] = np.where(_byte_counts(chunk.shapes) > 0, number, -1)
            self._offset[rows] = chunk.offsets
            self._pixels.append(chunk.pixels)
        want.store.mark_used()

    def __contains__(self, row: int) -> bool:
        return bool(self._chunk[row] >= 0)

    def __getitem__(self, row: int) -> Pixels:
        """A view [H, W, 3]; writes stay in this process. KeyError if the row is not cached."""
        if row not in self:
            raise KeyError(row)
        start = int(self._offset[row])
        height, width = (int(side) for side in self.shapes[row])
        flat = self._pixels[self._chunk[row]][start : start + height * width * 3]
        pixels: Pixels = flat.reshape(height, width, 3)
        return pixels

    def __reduce__(self) -> tuple[Callable[[PixelCacheKey], "MappedPixelCache"], tuple[Any, ...]]:
        return MappedPixelCache, (self.want,)
