"""Decoded pixels in files that are mapped into memory: one copy for all processes and later runs.

A store is a folder of chunks, each the pixels of some consecutive images, whole or not there.
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

from unfreeze.data.cache import cache_folder
from unfreeze.data.decode import DECODER
from unfreeze.data.sources import Source
from unfreeze.runtime.atomic import replacing

ENDING = ".pixels"
DONE = "used"  # its time of change: when these pixels were last wanted
CHUNK_BYTES = 64 * 2**20  # about; what is decoded again at most when a process is killed
_LEAST_CHUNKS = 16  # so that there is something to share out
MOST_CHUNKS = 256  # a map takes a file's handle, of which there are not many
# behind the pixels and their table: mark, number, images, checksum of the table, key
_FOOTER = struct.Struct("<8sQQL40s")
_MARK = b"unfreeze"

Rows = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Wanted:
    """Pixels of `rows` of `source`, shorter side at most `resize_to`, in `chunks` files.

    `key` follows from everything that the pixels follow from.
    """

    source: Source
    rows: Rows
    resize_to: int | None
    chunks: int
    key: str

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return pixels_folder() / self.key

    def path(self, number: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"{number:04}-of-{self.chunks:04}{ENDING}"

    def part(self, number: int) -> Rows:
        """The rows of a chunk."""
        first, last = (len(self.rows) * n // self.chunks for n in (number, number + 1))
        return self.rows[first:last]


def wanted(source: Source, rows: Rows, resize_to: int | None, total_bytes: float) -> Wanted:
    """What is to be kept; `total_bytes` say how many chunks, where none are there yet."""
    about = f"{source.fingerprint()} {DECODER} {source.intensity} {resize_to} "
    digest = hashlib.sha256(about.encode() + rows.astype("<i8").tobytes()).hexdigest()[:40]
    for there in sorted((pixels_folder() / digest).glob(f"*-of-*{ENDING}")):
        return Wanted(source, rows, resize_to, int(there.stem.rpartition("-")[2]), digest)
    chunks = min(max(round(total_bytes / CHUNK_BYTES), _LEAST_CHUNKS), MOST_CHUNKS, len(rows))
    return Wanted(source, rows, resize_to, chunks, digest)


def pixels_folder() -> Path:
    """Where pixels lie: beside what else is kept between runs."""
    return cache_folder() / "pixels"


class StoredImage(NamedTuple):
    """Pixels as they are kept, and the (height, width) before shrinking."""

    pixels: Pixels
    size: tuple[int, int]


@contextlib.contextmanager
def writing(want: Wanted, number: int) -> Iterator[Callable[[StoredImage | None], None]]:
    """Puts a chunk in its place when the block ends well.

    Yields what takes the images of its rows, one after the other, None for a bad one.
    ResourceError where the disk is full.
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
        file.write(_FOOTER.pack(_MARK, number, len(shapes), zlib.crc32(table), want.key.encode()))


def read_chunk(want: Wanted, number: int) -> tuple[Pixels, npt.NDArray[np.int32]]:
    """(its pixels, mapped; [n, 4] of its rows: kept height and width, those before shrinking).

    Zeros stand where there is no image.

    OSError where it is not there; ValueError says in what it is not what was written: its mark,
    key, table and length are held, the pixels themselves are not read.
    """
    count = len(want.part(number))
    with want.path(number).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        end = _FOOTER.size + count * 16
        if size < end:
            raise ValueError("the file is too short")
        # copy on write: readers share the pages, and nobody can change the file
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    mark, place, images, checksum, key = _FOOTER.unpack(data[size - _FOOTER.size :].tobytes())
    table = data[size - end : size - _FOOTER.size].tobytes()
    if (mark, place, images, key) != (_MARK, number, count, want.key.encode()):
        raise ValueError("it was written for other images")
    if checksum != zlib.crc32(table):
        raise ValueError("its table is damaged")
    shapes = np.frombuffer(table, "<i4").reshape(-1, 4)
    if int(shapes[:, :2].astype(np.int64).prod(axis=1).sum()) * 3 != size - end:
        raise ValueError("its length does not match its images")
    return data[: size - end], shapes


class MappedStore:
    """uint8 pixels [H, W, 3] by row of a source, from chunks that are all there.

    What comes out equals decoding and shrinking afresh. It travels to other processes as the
    place of its files, and is mapped again there.
    """

    def __init__(self, want: Wanted) -> None:
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
        want.folder.joinpath(DONE).touch()

    @property
    def used(self) -> int:
        """Bytes of pixels."""
        return sum(len(pixels) for pixels in self._pixels)

    def __contains__(self, row: int) -> bool:
        return bool(self._chunk[row] >= 0)

    def __getitem__(self, row: int) -> Pixels:
        """A view [H, W, 3]; what is written to it stays in this process. KeyError if not held."""
        if row not in self:
            raise KeyError(row)
        start = int(self._offset[row])
        height, width = (int(side) for side in self.shapes[row])
        flat = self._pixels[self._chunk[row]][start : start + height * width * 3]
        pixels: Pixels = flat.reshape(height, width, 3)
        return pixels

    def __reduce__(self) -> tuple[Callable[[Wanted], "MappedStore"], tuple[Any, ...]]:
        return MappedStore, (self.want,)


def is_ours(file: Path) -> bool:
    """Whether a file in a store's folder is one that stores are made of."""
    return file.suffix in (ENDING, ".tmp") or file.name == DONE
