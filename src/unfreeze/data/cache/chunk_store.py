"""Chunk store: an entry of a cache as a folder of safetensors files, each with consecutive rows.

Chunks are written atomically, so an interrupted build resumes after its last one, and are
memory-mapped, so processes share them. The pixel cache and the feature cache are chunk stores.
"""

import contextlib
import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from unfreeze.data.cache.folder import CacheKind, own_files
from unfreeze.runtime.atomic import replacing
from unfreeze.runtime.utf8_path import utf8_path

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
FORMAT = 2  # part of every key: an entry of another format is in another folder
CHUNK_BYTES = 64 * 2**20  # about; an interrupted build loses at most one chunk per process
ENDING = ".safetensors"
LAST_USED = "used"  # its modification time is the last use of the entry
RECENT_SECONDS = 3600.0  # files modified within this time may be in use by another run
_HEADER_BYTES = 4096  # reserved for the header, so the tensors begin on a page of memory


def cache_key(content: bytes) -> str:
    """Name of an entry: 40 hex digits of the SHA-256 of all that its rows depend on."""
    return hashlib.sha256(f"chunks {FORMAT} ".encode() + content).hexdigest()[:40]


def existing_chunk_count(folder: Path) -> int | None:
    """Number of chunks of an entry by the names of its files; None if there are none."""
    names = sorted(folder.glob(f"*-of-*{ENDING}"))
    return int(names[0].stem.rpartition("-")[2]) if names else None


class TensorSpec(NamedTuple):
    """A tensor of each chunk: [rows, *shape], with a `dtype` of safetensors, such as "F32".

    If `flat`, it is [any length, *shape] instead, and its contents have no checksum.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    flat: bool = False


@dataclass(frozen=True)
class ChunkStore:
    """The entry `key` of a cache: `rows` rows in chunks of `per_chunk`; the last may be smaller."""

    kind: CacheKind
    key: str
    rows: int
    per_chunk: int
    tensors: tuple[TensorSpec, ...]

    @property
    def folder(self) -> Path:
        """The folder of the chunks."""
        return self.kind.folder / self.key

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.rows // self.per_chunk)

    def path(self, number: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"{number:05}-of-{self.chunks:05}{ENDING}"

    def part(self, number: int) -> range:
        """The rows of a chunk."""
        return range(self.rows)[number * self.per_chunk : (number + 1) * self.per_chunk]

    def existing(self) -> list[int]:
        """Numbers of the chunks whose file exists."""
        return [number for number in range(self.chunks) if self.path(number).exists()]

    def missing_bytes(self, total: int) -> int:
        """Bytes still to be written of an entry of about `total` bytes."""
        existing = self.existing()
        if len(existing) == self.chunks:
            return 0
        return max(total - sum(self.path(number).stat().st_size for number in existing), 0)

    @contextlib.contextmanager
    def write(self, number: int) -> Iterator[Callable[[str, npt.NDArray[Any]], None]]:
        """Writes a chunk, which appears when the block ends without an error; needs no torch.

        Yields `append(name, rows)`: appends an array [n, ...] to a tensor, after all rows of the
        tensors before it in `tensors`. ResourceError if the disk is full.
        """
        with replacing(self.path(number)) as temporary, temporary.open("wb") as file:
            chunk = _ChunkFile(file, self.tensors)
            yield chunk.append
            chunk.write_header({"key": self.key, "number": str(number)})

    def read(self, number: int) -> dict[str, "Tensor"]:
        """Memory-mapped tensors of a chunk by name; changes of them stay in this process.

        OSError if the chunk is missing or cannot be mapped; ValueError if it is damaged or another
        one. The contents of flat tensors are not read.
        """
        import torch  # not above: worker processes write chunks without it

        tensors, checksum = dict[str, torch.Tensor](), 0
        try:
            with (
                utf8_path(self.path(number)) as path,
                safe_open(path, framework="pt") as file,
            ):
                metadata = file.metadata() or {}
                if (metadata.get("key"), metadata.get("number")) != (self.key, str(number)):
                    raise ValueError("the key is another one")
                for spec in self.tensors:
                    stored = file.get_slice(spec.name)
                    dtype, shape = stored.get_dtype(), tuple(stored.get_shape())
                    count = shape[:1] if spec.flat else (len(self.part(number)),)
                    if (dtype, shape) != (spec.dtype, (*count, *spec.shape)):
                        raise ValueError(f"unexpected {dtype} {shape}")
                    tensors[spec.name] = tensor = file.get_tensor(spec.name)
                    if not spec.flat:
                        content = tensor.reshape(-1).view(torch.uint8).numpy().data
                        checksum = zlib.crc32(content, checksum)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        except RuntimeError as error:  # torch cannot map the file, such as for lack of memory
            raise OSError(str(error)) from error
        if metadata.get("crc32") != str(checksum):
            raise ValueError("the checksum does not match")
        return tensors

    def intact(
        self, load: Callable[[int], T], advance: Callable[[int], None] = lambda _: None
    ) -> tuple[dict[int, T], list[str]]:
        """`load(number)` of each intact chunk by number, and a message for each damaged one."""
        chunks, damaged = dict[int, T](), list[str]()
        for number in self.existing():
            try:
                chunks[number] = load(number)
            except (OSError, ValueError) as error:
                damaged.append(f"{self.path(number)}: {error}")
            advance(1)
        return chunks, damaged

    def mark_used(self) -> None:
        """Sets the time of last use, which eviction goes by."""
        self.folder.joinpath(LAST_USED).touch()

    def remove_abandoned(self) -> None:
        """Removes temporary files of killed processes."""
        for file in self.folder.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if time.time() - file.stat().st_mtime > RECENT_SECONDS:
                    file.unlink()


class _ChunkFile:
    """Writes tensors to an open file, and then the header before them."""

    def __init__(self, file: IO[bytes], tensors: Sequence[TensorSpec]) -> None:
        self.file, self.specs = file, {spec.name: spec for spec in tensors}
        self.entries: dict[str, dict[str, Any]] = {}
        self.end = self.checksum = 0
        file.seek(_HEADER_BYTES)

    def append(self, name: str, rows: npt.NDArray[Any]) -> None:
        spec, data = self.specs[name], np.ascontiguousarray(rows).data
        empty = {"dtype": spec.dtype, "shape": [0, *spec.shape], "data_offsets": [self.end] * 2}
        entry = self.entries.setdefault(name, empty)
        self.file.write(data)
        self.end += data.nbytes
        entry["shape"][0] += len(rows)
        entry["data_offsets"][1] = self.end
        if not spec.flat:
            self.checksum = zlib.crc32(data, self.checksum)

    def write_header(self, metadata: dict[str, str]) -> None:
        about = {"__metadata__": {**metadata, "crc32": str(self.checksum)}, **self.entries}
        self.file.seek(0)
        self.file.write((_HEADER_BYTES - 8).to_bytes(8, "little"))
        self.file.write(json.dumps(about).encode().ljust(_HEADER_BYTES - 8))


def evict(kind: CacheKind, budget: int, needed: int, *, spared: Sequence[str] = ()) -> list[str]:
    """Removes entries, least recently used first, until `needed` more bytes fit into `budget`.

    Entries in `spared`, with files of others, or modified within the last hour stay. Returns the
    removed keys.
    """
    folders = [folder for folder in kind.folder.glob("*") if folder.is_dir()]
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
    removed = []
    for folder in sorted(folders, key=_last_used):
        if sum(sizes.values()) + needed <= budget:
            break
        recent = time.time() - _last_used(folder) <= RECENT_SECONDS
        if folder.name in spared or recent or own_files(folder, kind) is None:
            continue
        shutil.rmtree(folder, ignore_errors=True)  # fails on some systems if another run uses it
        if not folder.exists():
            removed.append(folder.name)
            del sizes[folder]
    return removed


def _last_used(folder: Path) -> float:
    return max((file.stat().st_mtime for file in folder.iterdir()), default=folder.stat().st_mtime)
