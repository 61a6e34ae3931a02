"""A zip file read in place: its directory as columns, its members by position."""

import stat
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.data.sources.members import last_of_each, plain, refuse_slip, skipped_note
from unfreeze.data.sources.positional import PositionalFile
from unfreeze.data.sources.source import Source, digest, refuse_oversize
from unfreeze.data.undecodable import Undecodable
from unfreeze.errors import DataError

_LOCAL = struct.Struct("<4s22xHH")  # signature, then the lengths of name and extra field
_ENCRYPTED = 0x1


class ZipSource(Source):
    """Members of a zip: stored or deflated, 64-bit too; the checksum is held on every read.

    Encrypted members, other methods of packing and names that leave the archive are DataErrors
    naming the member; links are skipped and counted; of equal names the last counts.
    """

    kind = "zip"

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._file = PositionalFile(path)
        infos = _directory(path)
        special = [i.filename for i in infos if not i.is_dir() and _is_special(i)]
        self.skipped = len(special)
        infos = [info for info in infos if not info.is_dir() and not _is_special(info)]
        for info in infos:
            _refuse(info, self.where, self._file.size)
        names = [plain(info.filename) for info in infos]
        places, hidden = last_of_each(names)
        self.notes = (*skipped_note(special), *hidden)
        infos = [infos[place] for place in places]
        self.names = [names[place] for place in places]
        self.skipped += len(names) - len(places)
        self.sizes: npt.NDArray[np.int64] = np.array([i.file_size for i in infos], np.int64)
        self._packed = np.array([info.compress_size for info in infos], np.int64)
        self._offsets = np.array([info.header_offset for info in infos], np.int64)
        self._checksums = np.array([info.CRC for info in infos], np.uint32)
        self._deflated = np.array([i.compress_type == zipfile.ZIP_DEFLATED for i in infos], bool)

    def read(self, row: int) -> bytes:
        """The member's bytes; Undecodable where it is cut, damaged or a bomb."""
        size, packed = int(self.sizes[row]), int(self._packed[row])
        refuse_oversize(size, packed)
        data = self._file.read(self._start(row), packed)
        if len(data) < packed:
            raise Undecodable("truncated", "the archive ends inside this member")
        if self._deflated[row]:
            data = _inflate(data, size)
        if len(data) != size or zlib.crc32(data) != self._checksums[row]:
            raise Undecodable("unreadable", "the archive's checksum does not match")
        return data

    def head(self, row: int, count: int) -> bytes:
        """The first bytes, unchecked; none where the member is damaged (its reading says why)."""
        try:
            # what does not compress takes a little more room than it has bytes
            packed = min(int(self._packed[row]), max(4096, count + 1024))
            data = self._file.read(self._start(row), packed)
            return (
                zlib.decompressobj(-15).decompress(data, count)
                if self._deflated[row]
                else data[:count]
            )
        except (Undecodable, zlib.error):
            return b""

    def fingerprint(self) -> str:
        """Names, sizes and checksums."""
        return digest(self.names, self.sizes, self._checksums)

    def _start(self, row: int) -> int:
        offset = int(self._offsets[row])
        header = self._file.read(offset, _LOCAL.size)
        if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
            raise Undecodable("unreadable", "the archive has no member where its directory says")
        _, name, extra = _LOCAL.unpack(header)
        return offset + _LOCAL.size + int(name) + int(extra)


def _directory(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, ValueError, struct.error, EOFError, NotImplementedError) as error:
        raise DataError(
            f"{path} is no zip file, or it is cut or damaged: {error}.",
            "Fetch it again; `unzip -t` tells more.",
        ) from error


def _is_special(info: zipfile.ZipInfo) -> bool:
    """Whether the member is a link or a device (the upper half holds the Unix mode)."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    return info.create_system == 3 and kind not in (0, stat.S_IFREG)


def _refuse(info: zipfile.ZipInfo, where: str, archive_size: int) -> None:
    # orig_filename: ZipInfo cuts names at a NUL, which would hide what it is
    refuse_slip(info.orig_filename, where)
    if info.flag_bits & _ENCRYPTED:
        raise DataError(
            f"{where}: the member {info.filename!r} is encrypted.",
            "Unpack it with its password and give the folder.",
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{where}: the member {info.filename!r} is packed by method {info.compress_type}, "
            "which is not read here.",
            "Pack again with `zip -r` (deflate or store), or give the unpacked folder.",
        )
    if info.header_offset + info.compress_size > archive_size:
        raise DataError(
            f"{where} is cut or damaged: the member {info.filename!r} lies beyond its end.",
            "Fetch the archive again.",
        )


def _inflate(data: bytes, size: int) -> bytes:
    try:
        # one byte of room tells a member that unpacks to more than it declares
        return zlib.decompressobj(-15).decompress(data, size + 1)
    except zlib.error as error:
        raise Undecodable("unreadable", f"the archive's member is damaged: {error}") from error
