"""Zip files, read in place: the directory as arrays, members by offset."""

import stat
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.data.images.errors import Undecodable
from unfreeze.data.sources.byte_ranges import PositionalFile
from unfreeze.data.sources.own_folders import output_folders, outputs_note
from unfreeze.data.sources.paths import (
    BACKSLASH_NOTE,
    normalize_names,
    refuse_path_traversal,
    skipped_note,
    with_slashes,
    without_duplicates,
)
from unfreeze.data.sources.source import Source, check_member_size, hash_names
from unfreeze.data.sources.zip_directory import ZipDirectory, read_directory
from unfreeze.errors import DataError
from unfreeze.text import without_surrogates

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
            entries = entries._replace(names=[with_slashes(name) for name in entries.names])
        folders = np.array([name.endswith("/") for name in entries.names], bool)
        special = _are_special(entries) & ~folders
        links = [entries.names[index] for index in np.flatnonzero(special)]
        files = np.flatnonzero(~folders & ~special)
        _refuse(entries, files, self.where, self._file.size)
        names = normalize_names([entries.names[index] for index in files.tolist()], self.where)
        positions, replaced_note = without_duplicates(names)
        self.notes = (*skipped_note(links), *replaced_note, *([BACKSLASH_NOTE] if windows else ()))
        self.skipped = len(links) + len(names) - len(positions)
        self.names = [without_surrogates(names[position]) for position in positions]
        rows = files[positions]
        self.sizes: npt.NDArray[np.int64] = entries.sizes[rows]
        self._compressed = entries.packed[rows]
        self._offsets = entries.offsets[rows]
        self._checksums = entries.checksums[rows]
        self._deflated = entries.methods[rows] == zipfile.ZIP_DEFLATED
        self._unsupported = dict(zip(*_unsupported(entries, rows), strict=True))
        self.outputs = output_folders(self)
        self.notes += outputs_note(self.outputs)

    def read(self, row: int) -> bytes:
        """The bytes of the member; Undecodable if it is truncated, corrupt or a bomb."""
        if row in self._unsupported:
            raise Undecodable("unreadable", self._unsupported[row])
        size, compressed = int(self.sizes[row]), int(self._compressed[row])
        check_member_size(size, compressed)
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
        return hash_names(self.names, self.sizes, self._checksums)

    def _start(self, row: int) -> int:
        offset = int(self._offsets[row])
        header = self._file.read(offset, _LOCAL.size)
        if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
            raise Undecodable(
                "unreadable", "the archive has no member at the offset in its directory"
            )
        _, name, extra = _LOCAL.unpack(header)
        return offset + _LOCAL.size + int(name) + int(extra)


def _directory(path: Path) -> ZipDirectory:
    try:
        return read_directory(path)
    except ValueError as error:
        raise DataError(
            f"{path} is not a zip file, or is truncated or corrupt: {error}.",
            "Download it again; `unzip -t` shows details.",
        ) from error


def _are_special(entries: ZipDirectory) -> npt.NDArray[np.bool_]:
    """Mask of links and devices, by the Unix mode in the upper half of the attributes."""
    types = (entries.attributes >> 16) & 0o170000
    return np.asarray((entries.systems == _UNIX) & (types != 0) & (types != stat.S_IFREG))


def _refuse(entries: ZipDirectory, rows: Rows, where: str, archive_size: int) -> None:
    """DataError if the archive is truncated, or if none of these members can be read."""
    beyond = entries.offsets[rows] + entries.packed[rows] > archive_size
    for index in np.flatnonzero(beyond)[:1]:
        name = entries.names[rows[index]]
        refuse_path_traversal(name, where)
        raise DataError(
            f"{where} is truncated or corrupt: the member {name!r} is beyond its end.",
            "Download the archive again.",
        )
    positions, reasons = _unsupported(entries, rows)
    if len(rows) and len(positions) == len(rows):
        name = entries.names[rows[0]]
        refuse_path_traversal(name, where)
        raise DataError(f"{where}: the member {name!r} is {reasons[0]}.", _NEXT_STEP)


def _unsupported(entries: ZipDirectory, rows: Rows) -> tuple[list[int], list[str]]:
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
