"""On-disk feature cache: features of frozen layers in chunks, read by row.

The features of one view of all images are one entry; an interrupted pass resumes after its last
chunk.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unfreeze.data.cache import chunk_store, folder
from unfreeze.data.cache.chunk_store import ChunkStore, TensorSpec
from unfreeze.data.cache.folder import FEATURE_CACHE, RESERVED_BYTES
from unfreeze.errors import ResourceError
from unfreeze.runtime.console import Console
from unfreeze.runtime.distributed import Distributed

TENSOR = "features"  # its name in a chunk
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


@dataclass(frozen=True)
class CacheKey:
    """Identifies the cached features of `rows` images; `batch`: images per forward pass.

    `shape`, `dtype`: of one image's features. `name`: description for people. `chunk`: about the
    bytes that an interrupted pass may lose.
    """

    key: str
    rows: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    batch: int
    name: str
    chunk: int = 0  # 0: the usual size

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's features."""
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())

    @property
    def store(self) -> ChunkStore:
        """Chunks of a multiple of the batch, so a resumed pass has the same batches."""
        batches = max(
            1, (self.chunk or chunk_store.CHUNK_BYTES) // max(1, self.row_bytes * self.batch)
        )
        features = TensorSpec(TENSOR, _DTYPES[self.dtype], self.shape)
        return ChunkStore(FEATURE_CACHE, self.key, self.rows, self.batch * batches, (features,))


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
    return FEATURE_CACHE.folder


def open_chunks(wanted: CacheKey, console: Console) -> tuple[dict[int, Tensor], list[str]]:
    """Intact chunks by number, and a message for each damaged one."""
    store = wanted.store
    with console.progress("checking cached features", len(store.existing())) as advance:
        return store.intact(lambda number: store.read(number)[TENSOR], advance)


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
    processes, store = processes or Distributed(), wanted.store
    store.remove_abandoned()
    chunks, damaged = processes.on_all_ranks(lambda: open_chunks(wanted, console))
    for text in damaged:
        console.warn(f"Cached features are damaged and are computed again: {text}")
    missing = [number for number in range(store.chunks) if number not in chunks]
    share = missing[processes.launch.local_rank :: processes.launch.local_world]
    done = processes.on_all_ranks(lambda: _compute(wanted, share, produce, console, stop))
    if processes.any([not done])[0]:
        return None
    for number in missing:
        chunks[number] = store.read(number)[TENSOR]
    store.mark_used()
    return CachedFeatures([chunks[number] for number in range(store.chunks)], store.per_chunk)


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
    store = wanted.store
    rows = sum(len(store.part(number)) for number in numbers)
    check_disk_space(rows * wanted.row_bytes)
    with console.progress(f"caching {wanted.name}", rows) as advance:
        for first, last in _runs(numbers):
            batches = produce(first * store.per_chunk)
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
            f"but only {free / 2**30:.1f} GiB are free.",
            "Free disk space, set UNFREEZE_CACHE to a larger disk, or use --cache off.",
        )


def free_bytes() -> int:
    """Free bytes on the disk of the cache."""
    return folder.free_bytes(feature_cache_folder())


def _filled(
    wanted: CacheKey,
    number: int,
    batches: Iterator[Tensor],
    advance: Callable[[int], None],
    stop: Callable[[], bool],
) -> Tensor | None:
    """One chunk, filled from the next batches; None if `stop` returned true."""
    part = torch.empty((len(wanted.store.part(number)), *wanted.shape), dtype=wanted.dtype)
    done = 0
    while done < len(part):
        if stop():
            return None
        batch = next(batches)
        part[done : done + len(batch)] = batch
        done += len(batch)
        advance(len(batch))
    return part


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of each run of consecutive numbers."""
    first = numbers[0]
    for this, following in zip(numbers, [*numbers[1:], -1], strict=True):
        if following != this + 1:
            yield first, this
            first = following


def _write(wanted: CacheKey, number: int, part: Tensor) -> None:
    with wanted.store.write(number) as append:
        append(TENSOR, part.reshape(len(part), -1).view(torch.uint8).numpy())
