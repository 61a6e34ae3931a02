"""Zip files, read in place: the directory as arrays, members by offset."""

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

_LOCAL = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
_ENCRYPTED = 0x1
_UNIX = 3
_NEXT_STEP = "Extract it (with its password, if any) and give the folder, or pack it with `zip -r`."

Rows = npt.NDArray[np.int64]


class ZipSource(Source):
    """Members of a zip or zip64 file, stored or deflated; each read verifies the checksum.

    Reading a member that is encrypted or compressed with another method fails. DataError if this is
    so for all members, or if a name points outside the archive. Links are skipped and counted; of
    members with the same name the last is used.
    """

    kind = "zip"

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._file = PositionalFile(path)
        entries = _directory(path)
        windows = any("\\" in name for name in entries.names)
        if windows:
            entries = entries._replace(names=[slashed(name) for name in entries.names])
        folders = np.array([name.endswith("/") for name in entries.names], bool)
        special = _are_special(entries) & ~folders
        links = [entries.names[index] for index in np.flatnonzero(special)]
        files = np.flatnonzero(~folders & ~special)
        _refuse(entries, files, self.where, self._file.size)
        names = plain_names([entries.names[index] for index in files.tolist()], self.where)
        positions, replaced_note = last_of_each(names)
        self.notes = (*skipped_note(links), *replaced_note, *([BACKSLASHES] if windows else ()))
        self.skipped = len(links) + len(names) - len(positions)
        self.names = [clean(names[position]) for position in positions]
        rows = files[positions]
        self.sizes: npt.NDArray[np.int64] = entries.sizes[rows]
        self._compressed = entries.packed[rows]
        self._offsets = entries.offsets[rows]
        self._checksums = entries.checksums[rows]
        self._deflated = entries.methods[rows] == zipfile.ZIP_DEFLATED
        self._unsupported = dict(zip(*_unsupported(entries, rows), strict=True))
        self.outputs = outputs_of(self)
        self.notes += outputs_note(self.outputs)

    def read(self, row: int) -> bytes:
        """The bytes of the member; Undecodable if it is truncated, corrupt or a bomb."""
        if row in self._unsupported:
            raise Undecodable("unreadable", self._unsupported[row])
        size, compressed = int(self.sizes[row]), int(self._compressed[row])
        refuse_oversize(size, compressed)
        data = self._file.read(self._start(row), compressed)
        if len(data) < compressed:
            raise Undecodable("truncated", "the archive is truncated inside this member")
        if self._deflated[row]:
            data = _inflate(data, size)
        if len(data) != size or zlib.crc32(data) != self._checksums[row]:
            raise Undecodable("unreadable", "its checksum in the archive does not match")
        return data

    def head(self, row: int, count: int) -> bytes:
        """The first bytes, not verified; empty if the member is corrupt (`read` raises why)."""
        if row in self._unsupported:
            return b""
        try:
            # incompressible data takes a little more than its size
            compressed = min(int(self._compressed[row]), max(4096, count + 1024))
            data = self._file.read(self._start(row), compressed)
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
            raise Undecodable(
                "unreadable", "the archive has no member at the offset in its directory"
            )
        _, name, extra = _LOCAL.unpack(header)
        return offset + _LOCAL.size + int(name) + int(extra)


def _directory(path: Path) -> Directory:
    try:
        return read_directory(path)
    except ValueError as error:
        raise DataError(
            f"{path} is not a zip file, or is truncated or corrupt: {error}.",
            "Download it again; `unzip -t` shows details.",
        ) from error


def _are_special(entries: Directory) -> npt.NDArray[np.bool_]:
    """Mask of links and devices, by the Unix mode in the upper half of the attributes."""
    types = (entries.attributes >> 16) & 0o170000
    return np.asarray((entries.systems == _UNIX) & (types != 0) & (types != stat.S_IFREG))


def _refuse(entries: Directory, rows: Rows, where: str, archive_size: int) -> None:
    """DataError if the archive is truncated, or if none of these members can be read."""
    beyond = entries.offsets[rows] + entries.packed[rows] > archive_size
    for index in np.flatnonzero(beyond)[:1]:
        name = entries.names[rows[index]]
        refuse_slip(name, where)
        raise DataError(
            f"{where} is truncated or corrupt: the member {name!r} is beyond its end.",
            "Download the archive again.",
        )
    positions, reasons = _unsupported(entries, rows)
    if len(rows) and len(positions) == len(rows):
        name = entries.names[rows[0]]
        refuse_slip(name, where)
        raise DataError(f"{where}: the member {name!r} is {reasons[0]}.", _NEXT_STEP)


def _unsupported(entries: Directory, rows: Rows) -> tuple[list[int], list[str]]:
    """Positions in `rows` of members that cannot be read, and the reasons."""
    encrypted = (entries.flags[rows] & _ENCRYPTED) > 0
    methods = entries.methods[rows]
    unknown = ~np.isin(methods, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    positions = np.flatnonzero(encrypted | unknown).tolist()
    reasons = [
        "encrypted"
        if encrypted[i]
        else f"compressed with method {methods[i]}, which is not supported"
        for i in positions
    ]
    return positions, reasons


def _inflate(data: bytes, size: int) -> bytes:
    try:
        # one more byte detects a member that decompresses to more than declared
        return zlib.decompressobj(-15).decompress(data, size + 1)
    except zlib.error as error:
        raise Undecodable("unreadable", f"the member of the archive is corrupt: {error}") from error
