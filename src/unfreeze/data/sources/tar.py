"""A tar file read in place; a packed one is unpacked once, as a stream, to an unnamed file."""

import gzip
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.sources.members import (
    BACKSLASHES,
    last_of_each,
    plain,
    refuse_slip,
    skipped_note,
    slashed,
)
from unfreeze.data.sources.own_folders import outputs_note, outputs_of
from unfreeze.data.sources.positional import PositionalFile
from unfreeze.data.sources.source import Source, digest, refuse_oversize
from unfreeze.data.undecodable import Undecodable
from unfreeze.errors import DataError, ResourceError
from unfreeze.text import clean

_BLOCK = 512
_GROWTH_LIMIT = 30  # images hardly shrink; tars of many tiny files do, some six-fold
_GROWTH_FREE = 256 * 2**20


class TarSource(Source):
    """Regular members of a tar by offset; links and devices are skipped and counted.

    Names that leave the archive, a cut archive and a damaged header are DataErrors; of equal
    names the last counts, as `tar --append` means it.
    """

    kind = "tar"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._load(PositionalFile(path), path)

    def _load(self, file: PositionalFile, path: Path) -> None:
        self.where, self._file = str(path), file
        names: list[str] = []
        columns: list[tuple[int, int, int]] = []
        special: list[str] = []
        windows = False
        with open(os.dup(file.descriptor), "rb") as stream:  # noqa: PTH123
            for member in _headers(stream, self.where):
                if not member.isreg() or member.issparse():
                    special += [] if member.isdir() else [member.name]
                    continue
                windows = windows or "\\" in member.name
                names.append(clean(plain(slashed(member.name))))
                columns.append((member.size, member.offset_data, int(member.mtime)))
        places, hidden = last_of_each(names)
        self.notes = (*skipped_note(special), *hidden, *([BACKSLASHES] if windows else ()))
        self.skipped = len(special) + len(names) - len(places)
        table = np.array([columns[place] for place in places], np.int64).reshape(-1, 3)
        self.names = [names[place] for place in places]
        self.sizes: npt.NDArray[np.int64] = np.ascontiguousarray(table[:, 0])
        self._offsets = np.ascontiguousarray(table[:, 1])
        self._times = np.ascontiguousarray(table[:, 2])
        self.outputs = outputs_of(self)
        self.notes += outputs_note(self.outputs)

    def read(self, row: int) -> bytes:
        """The member's bytes."""
        size = int(self.sizes[row])
        refuse_oversize(size, size)
        data = self._file.read(int(self._offsets[row]), size)
        if len(data) < size:
            raise Undecodable("truncated", "the archive ends inside this member")
        return data

    def head(self, row: int, count: int) -> bytes:
        """The first bytes."""
        return self._file.read(int(self._offsets[row]), min(count, int(self.sizes[row])))

    def stretch(self, row: int) -> tuple[int, int]:
        """(first byte, bytes) of the member in the plain tar."""
        return int(self._offsets[row]), int(self.sizes[row])

    def fingerprint(self) -> str:
        """Names, sizes, places and times of change (a tar has no checksums of content)."""
        changed = np.array([self._path.stat().st_mtime_ns], np.int64)
        return digest(self.names, self.sizes, self._offsets, self._times, changed)


class PackedTarSource(TarSource):
    """A `.tar.gz`, unpacked as a stream to an unnamed plain tar in the temporary folder.

    The unpacked size is bounded. Other processes read the same file where they can reach it
    (Linux), else they unpack again.
    """

    kind = "tar.gz"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._load(_unpack(path), path)

    def __reduce__(self) -> Any:
        if self._file.alias is None:
            return PackedTarSource, (self._path,), {"intensity": self.intensity}
        return _attached, (self.__dict__,)


def _headers(stream: IO[bytes], where: str) -> Iterator[tarfile.TarInfo]:
    """Every member's header, checked; TarFile keeps what it has seen, so it is made to forget.

    The end mark may be missing: other tools leave it out, and read such archives too.
    """
    size = stream.seek(0, os.SEEK_END)
    try:
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]
                refuse_slip(member.name, where)
                if member.isreg() and member.offset_data + member.size > size:
                    raise _damaged(where, f"it ends inside the member {member.name!r}")
                yield member
            place = archive.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise _damaged(where, str(error)) from error
    # TarFile also stops, without a word, at a header that it cannot read
    stream.seek(place)
    if stream.read(_BLOCK).strip(b"\x00"):
        raise _damaged(where, f"no header could be read at byte {place:,}")


def _attached(state: dict[str, Any]) -> PackedTarSource:
    """The same source in another process, over the file that the first one unpacked."""
    source = PackedTarSource.__new__(PackedTarSource)
    source.__dict__.update(state)
    return source


def _unpack(path: Path) -> PositionalFile:
    """The plain tar inside, in a file that has no name and goes when it is closed."""
    limit = max(_GROWTH_FREE, _GROWTH_LIMIT * path.stat().st_size)
    with tempfile.TemporaryFile() as plain_tar:
        try:
            with gzip.open(path) as packed:
                while block := packed.read(2**20):
                    plain_tar.write(block)
                    if plain_tar.tell() > limit:
                        raise _bomb(path, limit)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise _damaged(str(path), str(error)) from error
        except OSError as error:
            raise ResourceError(
                f"{path} could not be unpacked in {tempfile.gettempdir()}: {error}.",
                "Free some space there, or point TMPDIR at a larger disk.",
            ) from error
        plain_tar.flush()
        return PositionalFile.of_descriptor(os.dup(plain_tar.fileno()))


def _bomb(path: Path, limit: int) -> DataError:
    return DataError(
        f"{path} unpacks to more than {limit:,} bytes, which no archive of images does.",
        "If you trust it, unpack it yourself and give the folder.",
    )


def _damaged(where: str, detail: str) -> DataError:
    return DataError(
        f"{where} is no tar file, or it is cut or damaged: {detail}.", "Fetch the archive again."
    )
