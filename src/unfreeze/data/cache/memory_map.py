"""The memory-mapped pixel cache on disk, shared by all processes and later runs.

A cache is a folder of chunk files. Each has the pixels of consecutive images and is written
atomically.
"""

import contextlib
import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.cache.folder import cache_folder
from unfreeze.data.images.decode import DECODER
from unfreeze.data.sources.source import Source
from unfreeze.runtime.atomic import replacing

ENDING = ".pixels"
LAST_USED = "used"  # its modification time is the last use of the cache
CHUNK_BYTES = 64 * 2**20  # target size; what is lost if a process is killed
_MIN_CHUNKS = 16  # so that several workers can share the work
MOST_CHUNKS = 256  # each map uses one of a limited number of file handles
# after the pixels and their table: magic, number, images, checksum of the table, key
_FOOTER = struct.Struct("<8sQQL40s")
_MAGIC = b"unfreeze"

Rows = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PixelCacheKey:
    """Content of a cache: `rows` of `source`, shorter side at most `resize_to`, in `chunks` files.

    `key`: hash of everything that the pixels depend on.
    """

    source: Source
    rows: Rows
    resize_to: int | None
    chunks: int
    key: str

    @property
    def folder(self) -> Path:
        """The folder of the cache."""
        return pixels_folder() / self.key

    def path(self, number: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"{number:04}-of-{self.chunks:04}{ENDING}"

    def part(self, number: int) -> Rows:
        """The rows of a chunk."""
        first, last = (len(self.rows) * n // self.chunks for n in (number, number + 1))
        return self.rows[first:last]


def pixel_cache_key(
    source: Source, rows: Rows, resize_to: int | None, total_bytes: float
) -> PixelCacheKey:
    """The key of a cache; `total_bytes` decides the number of chunks of a new one."""
    description = f"{source.fingerprint()} {DECODER} {source.intensity} {resize_to} "
    digest = hashlib.sha256(description.encode() + rows.astype("<i8").tobytes()).hexdigest()[:40]
    for chunk in sorted((pixels_folder() / digest).glob(f"*-of-*{ENDING}")):
        return PixelCacheKey(source, rows, resize_to, int(chunk.stem.rpartition("-")[2]), digest)
    chunks = min(max(round(total_bytes / CHUNK_BYTES), _MIN_CHUNKS), MOST_CHUNKS, len(rows))
    return PixelCacheKey(source, rows, resize_to, chunks, digest)


def pixels_folder() -> Path:
    """The folder of all pixel caches."""
    return cache_folder() / "pixels"


class StoredImage(NamedTuple):
    """Resized pixels, and (height, width) before resizing."""

    pixels: Pixels
    size: tuple[int, int]


@contextlib.contextmanager
def write_chunk(want: PixelCacheKey, number: int) -> Iterator[Callable[[StoredImage | None], None]]:
    """Writes a chunk, which appears when the block ends without an error.

    Yields a function that appends the images of its rows in order, None for an unusable one.
    ResourceError if the disk is full.
    """
    shapes: list[tuple[int, ...]] = []
    with replacing(want.path(number)) as temporary, temporary.open("wb") as file:

        def add(image: StoredImage | None) -> None:
            if image is None:
                shapes.append((0, 0, 0, 0))
                return
            shapes.append((*image.pixels.shape[:2], *image.size))
            file.write(np.ascontiguousarray(image.pixels).data)

        yield add
        table = np.array(shapes, "<i4").tobytes()
        file.write(table)
        file.write(_FOOTER.pack(_MAGIC, number, len(shapes), zlib.crc32(table), want.key.encode()))


def read_chunk(want: PixelCacheKey, number: int) -> tuple[Pixels, npt.NDArray[np.int32]]:
    """(mapped pixels, [n, 4]: height and width of each row after and before resizing).

    Sizes are 0 for unusable images. OSError if the chunk does not exist; ValueError if its magic,
    key, table or length is wrong (the pixels are not read).
    """
    count = len(want.part(number))
    with want.path(number).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        end = _FOOTER.size + count * 16
        if size < end:
            raise ValueError("the file is too short")
        # copy on write: processes share the pages, and cannot change the file
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    magic, stored_number, images, checksum, key = _FOOTER.unpack(
        data[size - _FOOTER.size :].tobytes()
    )
    table = data[size - end : size - _FOOTER.size].tobytes()
    if (magic, stored_number, images, key) != (_MAGIC, number, count, want.key.encode()):
        raise ValueError("it was written for other images")
    if checksum != zlib.crc32(table):
        raise ValueError("its table is damaged")
    shapes = np.frombuffer(table, "<i4").reshape(-1, 4)
    if int(shapes[:, :2].astype(np.int64).prod(axis=1).sum()) * 3 != size - end:
        raise ValueError("its length does not match its images")
    return data[: size - end], shapes


class MappedPixelCache:
    """uint8 pixels [H, W, 3] by row of a source, from a complete cache on disk.

    The pixels equal those of decoding and resizing the image. Pickling stores only the key; other
    processes map the files again.
    """

    def __init__(self, want: PixelCacheKey) -> None:
        self.want, self.resize_to = want, want.resize_to
        count = len(want.source)
        self.shapes: npt.NDArray[np.int32] = np.zeros((count, 2), np.int32)
        self._chunk: npt.NDArray[np.int16] = np.full(count, -1, np.int16)
        self._offset: npt.NDArray[np.int64] = np.zeros(count, np.int64)
        self._pixels: list[Pixels] = []
        for number in range(want.chunks):
            pixels, shapes = read_chunk(want, number)
            rows = want.part(number)
            sizes = shapes[:, :2].astype(np.int64).prod(axis=1) * 3
            self.shapes[rows] = shapes[:, :2]
            self._chunk[rows] = np.where(sizes > 0, number, -1)
            self._offset[rows] = np.cumsum(sizes) - sizes
            self._pixels.append(pixels)
        want.folder.joinpath(LAST_USED).touch()

    @property
    def used(self) -> int:
        """Bytes of pixels."""
        return sum(len(pixels) for pixels in self._pixels)

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


def is_cache_file(file: Path) -> bool:
    """Whether a file in a cache folder belongs to the cache."""
    return file.suffix in (ENDING, ".tmp") or file.name == LAST_USED
