"""What a frozen part made of the images, kept in files: computed once, read back by row.

A view of all images is a folder of chunks, each a safetensors file that is whole or not there.
Chunks are mapped into memory, not read; a pass that was cut off goes on after its last chunk.
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

from unfreeze.data import room
from unfreeze.data.cache import cache_folder
from unfreeze.data.room import SPARE_BYTES
from unfreeze.errors import ResourceError
from unfreeze.runtime.atomic import replacing
from unfreeze.runtime.console import Console
from unfreeze.runtime.processes import Processes

CHUNK_BYTES = 64 * 2**20  # about; what is lost at most when a pass is cut off
ENDING = ".safetensors"
DONE = "used"  # its time of change: when these features were last wanted


@dataclass(frozen=True)
class Wanted:
    """Features of `rows` images under a `key`; `batch`: images of one forward pass.

    `shape` and `dtype`: of one image's. `name`: what they are, for people.
    """

    key: str
    rows: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    batch: int
    name: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one image."""
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())

    @property
    def chunk(self) -> int:
        """Images of a chunk: whole batches, so that going on makes the same batches."""
        return self.batch * max(1, CHUNK_BYTES // max(1, self.row_bytes * self.batch))

    @property
    def chunks(self) -> int:
        """How many there are."""
        return -(-self.rows // self.chunk)

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        return kept_folder() / self.key


class Kept:
    """Features by row: `take(rows)` is a tensor [B, ...] of its own memory."""

    def __init__(self, parts: Sequence[Tensor], chunk: int) -> None:
        self.parts, self.chunk = list(parts), chunk

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(part.nbytes for part in self.parts)

    def take(self, rows: Tensor) -> Tensor:
        """The rows [B] int64, in this order."""
        if len(self.parts) == 1:
            return self.parts[0].index_select(0, rows.to(self.parts[0].device))
        which, inside = rows // self.chunk, rows % self.chunk
        found = torch.empty((len(rows), *self.parts[0].shape[1:]), dtype=self.parts[0].dtype)
        for number in sorted(set(which.tolist())):
            places = (which == number).nonzero()[:, 0]
            found[places] = self.parts[number].index_select(0, inside[places])
        return found

    def held(self, device: torch.device) -> "Kept":
        """The same as one tensor in the memory of `device`."""
        return Kept([torch.cat([part.to(device) for part in self.parts])], max(1, len(self)))


def kept_folder() -> Path:
    """Where features lie: beside what else is kept between runs."""
    return cache_folder() / "features"


def opened(wanted: Wanted, console: Console) -> tuple[dict[int, Tensor], list[str]]:
    """The chunks that are there and whole, by number, and what is wrong with the others.

    A chunk is whole when its key, place, type, shape and checksum are those that were written.
    """
    found, wrong = dict[int, Tensor](), list[str]()
    there = [n for n in range(wanted.chunks) if _path(wanted, n).exists()]
    with console.progress("checking kept features", len(there)) as advance:
        for number in there:
            try:
                found[number] = _read(wanted, number)
            except (SafetensorError, OSError, ValueError) as error:
                wrong.append(f"{_path(wanted, number)}: {error}")
            advance(1)
    return found, wrong


def keep(
    wanted: Wanted,
    produce: Callable[[int], Iterator[Tensor]],
    console: Console,
    stop: Callable[[], bool],
    processes: Processes | None = None,
) -> Kept | None:
    """Open what is kept, computing what is not; None where `stop` said so before the end.

    `produce(start)` yields the features of batches of `wanted.batch` rows from row `start` on.
    Damaged and foreign chunks are named and computed again. ResourceError where the disk is full.
    The processes of a machine share the chunks that are missing.
    """
    processes = processes or Processes()
    found, wrong = processes.together(lambda: opened(wanted, console))
    for text in wrong:
        console.warn(f"Cached features are damaged or foreign and are computed again: {text}")
    missing = [number for number in range(wanted.chunks) if number not in found]
    own = missing[processes.launch.local_rank :: processes.launch.local_world]
    done = processes.together(lambda: _compute(wanted, own, produce, console, stop))
    if processes.any([not done])[0]:
        return None
    for number in missing:
        found[number] = _read(wanted, number)
    _touch(wanted)
    return Kept([found[number] for number in range(wanted.chunks)], wanted.chunk)


def _compute(
    wanted: Wanted,
    numbers: list[int],
    produce: Callable[[int], Iterator[Tensor]],
    console: Console,
    stop: Callable[[], bool],
) -> bool:
    """Write these chunks; False where `stop` said so before the end."""
    if not numbers:
        return True
    rows = sum(_rows(wanted, number) for number in numbers)
    check_room(rows * wanted.row_bytes)
    with console.progress(f"keeping {wanted.name}", rows) as advance:
        for first, last in _runs(numbers):
            batches = produce(first * wanted.chunk)
            with contextlib.closing(batches):  # type: ignore[type-var]
                for number in range(first, last + 1):
                    part = _filled(wanted, number, batches, advance, stop)
                    if part is None:
                        return False
                    _write(wanted, number, part)
    return True


def check_room(needed: int) -> None:
    """ResourceError where the disk of the cache has no room for `needed` bytes."""
    free = free_bytes()
    if needed + SPARE_BYTES > free:
        raise ResourceError(
            f"Keeping features takes {needed / 2**30:.1f} GiB in {kept_folder()}, where "
            f"{free / 2**30:.1f} GiB are free.",
            "Free some space, let UNFREEZE_CACHE name a larger disk, or use --cache off.",
        )


def free_bytes() -> int:
    """Room on the disk of the cache."""
    return room.free_bytes(kept_folder())


def make_room(budget: int, needed: int, *, spared: Sequence[str] = ()) -> list[str]:
    """Remove the features that were not wanted for longest until `needed` more fit `budget` bytes.

    What `spared` names and what changed within the hour stays. Returns the keys removed.
    """

    def ours(file: Path) -> bool:
        return file.suffix == ENDING or file.name == DONE

    return room.make_room(kept_folder(), budget, needed, ours=ours, spared=spared)


def _filled(
    wanted: Wanted,
    number: int,
    batches: Iterator[Tensor],
    advance: Callable[[int], None],
    stop: Callable[[], bool],
) -> Tensor | None:
    """One chunk's rows from the next batches."""
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


def _rows(wanted: Wanted, number: int) -> int:
    return min(wanted.chunk, wanted.rows - number * wanted.chunk)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of each run of consecutive numbers."""
    first = numbers[0]
    for this, following in zip(numbers, [*numbers[1:], -1], strict=True):
        if following != this + 1:
            yield first, this
            first = following


def _path(wanted: Wanted, number: int) -> Path:
    return wanted.folder / f"{number:05}{ENDING}"


def _write(wanted: Wanted, number: int, part: Tensor) -> None:
    about = {"key": wanted.key, "number": str(number), "sum": str(_sum(part)), "name": wanted.name}
    with replacing(_path(wanted, number)) as temporary:
        try:
            save_file({"kept": part}, temporary, metadata=about)
        except SafetensorError as error:
            # the library wraps what the system said; a full disk is the likely cause
            raise ResourceError(
                f"{_path(wanted, number)} could not be written: {error}.",
                "Free some space, or use --cache off.",
            ) from error


def _read(wanted: Wanted, number: int) -> Tensor:
    """A chunk, mapped into memory; ValueError says in what it is not what was written."""
    with safe_open(_path(wanted, number), framework="pt") as file:
        about = file.metadata() or {}
        part: Tensor = file.get_tensor("kept")
    if about.get("key") != wanted.key or about.get("number") != str(number):
        raise ValueError("it belongs to other features")
    if part.dtype != wanted.dtype or part.shape != (_rows(wanted, number), *wanted.shape):
        raise ValueError(f"it holds {part.dtype} {tuple(part.shape)}")
    if about.get("sum") != str(_sum(part)):
        raise ValueError("its checksum does not match")
    return part


def _sum(part: Tensor) -> int:
    return zlib.crc32(part.contiguous().view(-1).view(torch.uint8).numpy().data)


def _touch(wanted: Wanted) -> None:
    mark = wanted.folder / DONE
    mark.touch()
    os.utime(mark)
