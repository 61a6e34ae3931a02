"""On-disk feature cache: features of frozen layers in safetensors chunks, read by row.

The features of one view of all images are a folder of chunks. Chunks are written atomically and
memory-mapped; an interrupted pass resumes after its last chunk.
"""

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unfreeze.data.cache import folder as room
from unfreeze.data.cache.folder import RESERVED_BYTES, cache_folder
from unfreeze.errors import ResourceError
from unfreeze.runtime.atomic import replacing
from unfreeze.runtime.console import Console
from unfreeze.runtime.distributed import Distributed

CHUNK_BYTES = 64 * 2**20  # about; an interrupted pass loses at most one chunk
ENDING = ".safetensors"
DONE = "used"  # marker file; its modification time is the time of last use


@dataclass(frozen=True)
class CacheKey:
    """Identifies the cached features of `rows` images; `batch`: images per forward pass.

    `shape`, `dtype`: of one image's features. `name`: description for people.
    """

    key: str
    rows: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    batch: int
    name: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's features."""
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())

    @property
    def chunk(self) -> int:
        """Images per chunk: a multiple of the batch, so a resumed pass has the same batches."""
        return self.batch * max(1, CHUNK_BYTES // max(1, self.row_bytes * self.batch))

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.rows // self.chunk)

    @property
    def folder(self) -> Path:
        """Folder of the chunks."""
        return feature_cache_folder() / self.key


class CachedFeatures:
    """Cached features; `take(rows)` copies rows into a new tensor [B, ...]."""

    def __init__(self, parts: Sequence[Tensor], chunk: int) -> None:
        self.parts, self.chunk = list(parts), chunk

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Size of all features in bytes."""
        return sum(part.nbytes for part in self.parts)

    def take(self, rows: Tensor) -> Tensor:
        """Features of the rows [B] int64, in this order."""
        if len(self.parts) == 1:
            return self.parts[0].index_select(0, rows.to(self.parts[0].device))
        chunks, offsets = rows // self.chunk, rows % self.chunk
        result = torch.empty((len(rows), *self.parts[0].shape[1:]), dtype=self.parts[0].dtype)
        for number in sorted(set(chunks.tolist())):
            positions = (chunks == number).nonzero()[:, 0]
            result[positions] = self.parts[number].index_select(0, offsets[positions])
        return result

    def held(self, device: torch.device) -> "CachedFeatures":
        """The same features as one tensor in the memory of `device`."""
        return CachedFeatures(
            [torch.cat([part.to(device) for part in self.parts])], max(1, len(self))
        )


def feature_cache_folder() -> Path:
    """Folder of all feature caches, inside the project's cache folder."""
    return cache_folder() / "features"


def open_chunks(wanted: CacheKey, console: Console) -> tuple[dict[int, Tensor], list[str]]:
    """Intact chunks by number, and a message for each damaged one.

    A chunk is intact if its key, number, dtype, shape and checksum match.
    """
    chunks, damaged = dict[int, Tensor](), list[str]()
    existing = [n for n in range(wanted.chunks) if _path(wanted, n).exists()]
    with console.progress("checking cached features", len(existing)) as advance:
        for number in existing:
            try:
                chunks[number] = _read(wanted, number)
            except (SafetensorError, OSError, ValueError) as error:
                damaged.append(f"{_path(wanted, number)}: {error}")
            advance(1)
    return chunks, damaged


def cache_features(
    wanted: CacheKey,
    produce: Callable[[int], Iterator[Tensor]],
    console: Console,
    stop: Callable[[], bool],
    processes: Distributed | None = None,
) -> CachedFeatures | None:
    """Load the cached features and compute those that are missing; None if `stop` returned true.

    `produce(start)` yields features of batches of `wanted.batch` rows, starting at row `start`.
    Damaged chunks are reported and computed again. Raises ResourceError if the disk is full.
    The processes of a machine share the missing chunks.
    """
    processes = processes or Distributed()
    chunks, damaged = processes.together(lambda: open_chunks(wanted, console))
    for text in damaged:
        console.warn(f"Cached features are damaged and are computed again: {text}")
    missing = [number for number in range(wanted.chunks) if number not in chunks]
    share = missing[processes.launch.local_rank :: processes.launch.local_world]
    done = processes.together(lambda: _compute(wanted, share, produce, console, stop))
    if processes.any([not done])[0]:
        return None
    for number in missing:
        chunks[number] = _read(wanted, number)
    _touch(wanted)
    return CachedFeatures([chunks[number] for number in range(wanted.chunks)], wanted.chunk)


def _compute(
    wanted: CacheKey,
    numbers: list[int],
    produce: Callable[[int], Iterator[Tensor]],
    console: Console,
    stop: Callable[[], bool],
) -> bool:
    """Compute and write these chunks; False if `stop` returned true before the end."""
    if not numbers:
        return True
    rows = sum(_rows(wanted, number) for number in numbers)
    check_disk_space(rows * wanted.row_bytes)
    with console.progress(f"caching {wanted.name}", rows) as advance:
        for first, last in _runs(numbers):
            batches = produce(first * wanted.chunk)
            with contextlib.closing(batches):  # type: ignore[type-var]
                for number in range(first, last + 1):
                    part = _filled(wanted, number, batches, advance, stop)
                    if part is None:
                        return False
                    _write(wanted, number, part)
    return True


def check_disk_space(needed: int) -> None:
    """Raise ResourceError if the disk of the cache has less than `needed` bytes free."""
    free = free_bytes()
    if needed + RESERVED_BYTES > free:
        raise ResourceError(
            f"The feature cache needs {needed / 2**30:.1f} GiB in {feature_cache_folder()}, "
            "but only "
            f"{free / 2**30:.1f} GiB are free.",
            "Free disk space, set UNFREEZE_CACHE to a larger disk, or use --cache off.",
        )


def free_bytes() -> int:
    """Free bytes on the disk of the cache."""
    return room.free_bytes(feature_cache_folder())


def evict(budget: int, needed: int, *, spared: Sequence[str] = ()) -> list[str]:
    """Remove the least recently used features until `needed` more bytes fit into `budget`.

    Keys in `spared` and features changed within the last hour stay. Returns the removed keys.
    """

    def is_cache_file(file: Path) -> bool:
        return file.suffix == ENDING or file.name == DONE

    return room.evict_caches(
        feature_cache_folder(), budget, needed, ours=is_cache_file, spared=spared
    )


def _filled(
    wanted: CacheKey,
    number: int,
    batches: Iterator[Tensor],
    advance: Callable[[int], None],
    stop: Callable[[], bool],
) -> Tensor | None:
    """One chunk, filled from the next batches; None if `stop` returned true."""
    part = torch.empty((_rows(wanted, number), *wanted.shape), dtype=wanted.dtype)
    done = 0
    while done < len(part):
        if stop():
            return None
        batch = next(batches)
        part[done : done + len(batch)] = batch
        done += len(batch)
        advance(len(batch))
    return part


def _rows(wanted: CacheKey, number: int) -> int:
    return min(wanted.chunk, wanted.rows - number * wanted.chunk)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of each run of consecutive numbers."""
    first = numbers[0]
    for this, following in zip(numbers, [*numbers[1:], -1], strict=True):
        if following != this + 1:
            yield first, this
            first = following


def _path(wanted: CacheKey, number: int) -> Path:
    return wanted.folder / f"{number:05}{ENDING}"


def _write(wanted: CacheKey, number: int, part: Tensor) -> None:
    about = {
        "key": wanted.key,
        "number": str(number),
        "sum": str(_checksum(part)),
        "name": wanted.name,
    }
    with replacing(_path(wanted, number)) as temporary:
        try:
            save_file({"kept": part}, temporary, metadata=about)
        except SafetensorError as error:
            # safetensors wraps the OS error; most likely the disk is full
            raise ResourceError(
                f"Cannot write {_path(wanted, number)}: {error}.",
                "Free disk space, or use --cache off.",
            ) from error


def _read(wanted: CacheKey, number: int) -> Tensor:
    """A memory-mapped chunk; raises ValueError with what does not match."""
    with safe_open(_path(wanted, number), framework="pt") as file:
        about = file.metadata() or {}
        part: Tensor = file.get_tensor("kept")
    if about.get("key") != wanted.key or about.get("number") != str(number):
        raise ValueError("the key is another one")
    if part.dtype != wanted.dtype or part.shape != (_rows(wanted, number), *wanted.shape):
        raise ValueError(f"unexpected {part.dtype} {tuple(part.shape)}")
    if about.get("sum") != str(_checksum(part)):
        raise ValueError("the checksum does not match")
    return part


def _checksum(part: Tensor) -> int:
    return zlib.crc32(part.contiguous().view(-1).view(torch.uint8).numpy().data)


def _touch(wanted: CacheKey) -> None:
    mark = wanted.folder / DONE
    mark.touch()
    os.utime(mark)
