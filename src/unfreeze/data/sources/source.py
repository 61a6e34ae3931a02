"""What every source of images offers: names, sizes and bytes by row, and a fingerprint."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from unfreeze.data.undecodable import Undecodable

MEMBER_LIMIT = 768 * 2**20  # bytes of one encoded image; more is never read
_RATIO_LIMIT = 200  # a large member that unpacks to more than this is taken for a bomb
_RATIO_FREE = 64 * 2**20
_TOGETHER = 2**12  # names that are hashed at once


class Source(ABC):
    """Regular files in a fixed order; a row is a place in it.

    `names` are relative with `/`, junk included; `sizes` are bytes; `skipped` counts links,
    devices and the like, which are never followed out of an archive; `notes` are sentences for
    people; `outputs` are folders that this tool wrote, of which nothing is read. `labels`, `splits`
    and `groups` hold one entry a row where the source itself says them (`""`: nothing said).
    Reading is thread-safe and works after a fork.
    """

    kind: str
    where: str
    names: list[str]
    sizes: npt.NDArray[np.int64]
    labels: list[str] | None = None
    splits: list[str] | None = None
    groups: list[str] | None = None
    listed: bool = False  # every row is a image, as a list says
    intensity: str = "auto"  # the rule by which deep grey is decoded
    skipped: int = 0
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, row: int) -> bytes | npt.NDArray[np.uint8]:
        """The file's bytes, or pixels uint8 [H, W, 3]; raises OSError or Undecodable."""

    @abstractmethod
    def head(self, row: int, count: int) -> bytes:
        """The first `count` bytes or fewer (none where the source holds pixels)."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex of what identifies the content: names, sizes, and times or checksums."""

    def column(self, name: str) -> list[str] | None:
        """One text a row from the list behind the source; None where there is no such column."""
        del name
        return None


def digest(names: Sequence[str], *columns: npt.NDArray[np.generic]) -> str:
    """64 hex digits over names and columns, in order."""
    hasher = hashlib.sha256()
    for start in range(0, len(names), _TOGETHER):
        some = "".join(f"{name}\0" for name in names[start : start + _TOGETHER])
        hasher.update(some.encode("utf-8", "surrogateescape"))
    for column in columns:
        hasher.update(np.ascontiguousarray(column).tobytes())
    return hasher.hexdigest()


def refuse_oversize(size: int, packed: int) -> None:
    """Raises Undecodable for a file too large to read, or one that unpacks to absurdly more."""
    if size > MEMBER_LIMIT:
        raise Undecodable("bomb", f"{size:,} bytes, more than the limit of {MEMBER_LIMIT:,}")
    if size > _RATIO_FREE and size > _RATIO_LIMIT * max(packed, 1):
        raise Undecodable("bomb", f"{packed:,} bytes claim to unpack to {size:,}")
