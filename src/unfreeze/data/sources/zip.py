"""A zip file read in place: its directory as columns, its members by position."""

import stat
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.data.sources.directory import Directory, read_directory
from unfreeze.data.sources.members import (
    BACKSLASHES,
    last_of_each,
    plain_names,
    refuse_slip,
    skipped_note,
    slashed,
)
from unfreeze.data.sources.own_folders import outputs_note, outputs_of
from unfreeze.data.sources.positional import PositionalFile
from unfreeze.data.sources.source import Source, digest, refuse_oversize
from unfreeze.data.undecodable import Undecodable
from unfreeze.errors import DataError
from unfreeze.text import clean

_LOCAL = struct.Struct("<4s22xHH")  # signature, then the lengths of name and extra field
_ENCRYPTED = 0x1
_UNIX = 3
_AGAIN = "Unpack it, with its password if it has one, and give the folder; or pack with `zip -r`."

Rows = npt.NDArray[np.int64]


class ZipSource(Source):
    """Members of a zip: stored or deflated, 64-bit too; the checksum is held on every read.

    Members that are encrypted or packed by another method cannot be read, each by itself; where
    that is all there is, and for names that leave the archive, it is a DataError naming one. Links
    are skipped and counted; of equal names the last counts.
    """

    kind = "zip"

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._file = PositionalFile(path)
        found = _directory(path)
        windows = any("\\" in name for name in found.names)
        if windows:
            found = found._replace(names=[slashed(name) for name in found.names])
        folders = np.array([name.endswith("/") for name in found.names], bool)
        special = _are_special(found) & ~folders
        links = [found.names[place] for place in np.flatnonzero(special)]
        kept = np.flatnonzero(~folders & ~special)
        _refuse(found, kept, self.where, self._file.size)
        names = plain_names([found.names[place] for place in kept.tolist()], self.where)
        places, hidden = last_of_each(names)
        self.notes = (*skipped_note(links), *hidden, *([BACKSLASHES] if windows else ()))
        self.skipped = len(links) + len(names) - len(places)
        self.names = [clean(names[place]) for place in places]
        rows = kept[places]
        self.sizes: npt.NDArray[np.int64] = found.sizes[rows]
        self._packed = found.packed[rows]
        self._offsets = found.offsets[rows]
        self._checksums = found.checksums[rows]
        self._deflated = found.methods[rows] == zipfile.ZIP_DEFLATED
        self._closed = dict(zip(*_closed(found, rows), strict=True))
        self.outputs = outputs_of(self)
        self.notes += outputs_note(self.outputs)

    def read(self, row: int) -> bytes:
        """The member's bytes; Undecodable where it is cut, damaged or a bomb."""
        if row in self._closed:
            raise Undecodable("unreadable", self._closed[row])
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
        if row in self._closed:
            return b""
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


def _directory(path: Path) -> Directory:
    try:
        return read_directory(path)
    except ValueError as error:
        raise DataError(
            f"{path} is no zip file, or it is cut or damaged: {error}.",
            "Fetch it again; `unzip -t` tells more.",
        ) from error


def _are_special(found: Directory) -> npt.NDArray[np.bool_]:
    """Which members are links or devices (the upper half holds the Unix mode)."""
    kinds = (found.attributes >> 16) & 0o170000
    return np.asarray((found.systems == _UNIX) & (kinds != 0) & (kinds != stat.S_IFREG))


def _refuse(found: Directory, rows: Rows, where: str, archive_size: int) -> None:
    """DataError where the archive is cut, or where none of these members can be read here."""
    beyond = found.offsets[rows] + found.packed[rows] > archive_size
    for place in np.flatnonzero(beyond)[:1]:
        name = found.names[rows[place]]
        refuse_slip(name, where)
        raise DataError(
            f"{where} is cut or damaged: the member {name!r} lies beyond its end.",
            "Fetch the archive again.",
        )
    places, why = _closed(found, rows)
    if len(rows) and len(places) == len(rows):
        name = found.names[rows[0]]
        refuse_slip(name, where)
        raise DataError(f"{where}: the member {name!r} is {why[0]}.", _AGAIN)


def _closed(found: Directory, rows: Rows) -> tuple[list[int], list[str]]:
    """Positions in `rows` of the members that cannot be read here, and why not."""
    encrypted = (found.flags[rows] & _ENCRYPTED) > 0
    methods = found.methods[rows]
    strange = ~np.isin(methods, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    places = np.flatnonzero(encrypted | strange).tolist()
    why = [
        "encrypted" if encrypted[p] else f"packed by method {methods[p]}, which is not read here"
        for p in places
    ]
    return places, why


def _inflate(data: bytes, size: int) -> bytes:
    try:
        # one byte of room tells a member that unpacks to more than it declares
        return zlib.decompressobj(-15).decompress(data, size + 1)
    except zlib.error as error:
        raise Undecodable("unreadable", f"the archive's member is damaged: {error}") from error
