"""Tar files, read in place; `.tar.gz` is decompressed once into an unnamed temporary file."""

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

from unfreeze.data.images.errors import Undecodable
from unfreeze.data.sources.byte_ranges import PositionalFile
from unfreeze.data.sources.own_folders import output_folders, outputs_note
from unfreeze.data.sources.paths import (
    BACKSLASH_NOTE,
    normalize_name,
    refuse_path_traversal,
    skipped_note,
    with_slashes,
    without_duplicates,
)
from unfreeze.data.sources.source import Source, check_member_size, hash_names
from unfreeze.errors import DataError, ResourceError
from unfreeze.text import without_surrogates

_BLOCK = 512
_RATIO_LIMIT = 30  # images hardly compress; tars of many tiny files do, up to sixfold
_RATIO_FREE = 256 * 2**20


class TarSource(Source):
    """Regular members of a tar by offset; links and devices are skipped and counted.

    DataError for names that point outside the archive, truncated archives and corrupt headers. Of
    members with the same name the last is used, as after `tar --append`.
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
                names.append(without_surrogates(normalize_name(with_slashes(member.name))))
                columns.append((member.size, member.offset_data, int(member.mtime)))
        positions, replaced_note = without_duplicates(names)
        self.notes = (
            *skipped_note(special),
            *replaced_note,
            *([BACKSLASH_NOTE] if windows else ()),
        )
        self.skipped = len(special) + len(names) - len(positions)
        table = np.array([columns[position] for position in positions], np.int64).reshape(-1, 3)
        self.names = [names[position] for position in positions]
        self.sizes: npt.NDArray[np.int64] = np.ascontiguousarray(table[:, 0])
        self._offsets = np.ascontiguousarray(table[:, 1])
        self._times = np.ascontiguousarray(table[:, 2])
        self.outputs = output_folders(self)
        self.notes += outputs_note(self.outputs)

    def read(self, row: int) -> bytes:
        """The bytes of the member; Undecodable if the archive is truncated."""
        size = int(self.sizes[row])
        check_member_size(size, size)
        data = self._file.read(int(self._offsets[row]), size)
        if len(data) < size:
            raise Undecodable("truncated", "the archive is truncated inside this member")
        return data

    def head(self, row: int, count: int) -> bytes:
        """The first bytes."""
        return self._file.read(int(self._offsets[row]), min(count, int(self.sizes[row])))

    def stretch(self, row: int) -> tuple[int, int]:
        """(offset, size) of the member in the uncompressed tar."""
        return int(self._offsets[row]), int(self.sizes[row])

    def fingerprint(self) -> str:
        """Names, sizes, offsets and modification times (a tar has no checksums of content)."""
        modified = np.array([self._path.stat().st_mtime_ns], np.int64)
        return hash_names(self.names, self.sizes, self._offsets, self._times, modified)


class TarGzSource(TarSource):
    """A `.tar.gz`, decompressed into an unnamed tar in the temporary folder.

    The decompressed size is limited. Other processes use the same file on Linux; elsewhere they
    decompress again.
    """

    kind = "tar.gz"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._load(_decompress(path), path)

    def __reduce__(self) -> Any:
        if self._file.alias is None:
            return TarGzSource, (self._path,), {"intensity": self.intensity}
        return _from_state, (self.__dict__,)


def _headers(stream: IO[bytes], where: str) -> Iterator[tarfile.TarInfo]:
    """Yields the headers of all members, checked; clears TarFile's list to save memory.

    The end-of-archive marker can be missing, as other tools omit it.
    """
    size = stream.seek(0, os.SEEK_END)
    try:
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]
                refuse_path_traversal(member.name, where)
                if member.isreg() and member.offset_data + member.size > size:
                    raise _corrupt(where, f"it ends inside the member {member.name!r}")
                yield member
            end = archive.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise _corrupt(where, str(error)) from error
    # TarFile stops without an error at a header that it cannot read
    stream.seek(end)
    if stream.read(_BLOCK).strip(b"\x00"):
        raise _corrupt(where, f"no valid header at byte {end:,}")


def _from_state(state: dict[str, Any]) -> TarGzSource:
    """The source in another process, which uses the file decompressed by the first one."""
    source = TarGzSource.__new__(TarGzSource)
    source.__dict__.update(state)
    return source


def _decompress(path: Path) -> PositionalFile:
    """The decompressed tar, in an unnamed file that is deleted when it is closed."""
    limit = max(_RATIO_FREE, _RATIO_LIMIT * path.stat().st_size)
    with tempfile.TemporaryFile() as temporary:
        try:
            with gzip.open(path) as compressed:
                while block := compressed.read(2**20):
                    temporary.write(block)
                    if temporary.tell() > limit:
                        raise _bomb(path, limit)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise _corrupt(str(path), str(error)) from error
        except OSError as error:
            raise ResourceError(
                f"{path} cannot be decompressed to {tempfile.gettempdir()}: {error}.",
                "Free disk space there, or set TMPDIR to a folder on a larger disk.",
            ) from error
        temporary.flush()
        return PositionalFile.of_descriptor(os.dup(temporary.fileno()))


def _bomb(path: Path, limit: int) -> DataError:
    return DataError(
        f"{path} decompresses to more than {limit:,} bytes, too much for an archive of images.",
        "If you trust it, extract it and give the folder.",
    )


def _corrupt(where: str, detail: str) -> DataError:
    return DataError(
        f"{where} is not a tar file, or is truncated or corrupt: {detail}.",
        "Download the archive again.",
    )
