"""Zip files, read in place: the directory as arrays, members by offset."""

import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.images.errors import Undecodable
from unfreeze.data.sources.own_folders import output_folders, outputs_note
from unfreeze.data.sources.paths import (
    BACKSLASH_NOTE,
    normalize_names,
    refuse_path_traversal,
    skipped_note,
    with_slashes,
    without_duplicates,
)
from unfreeze.data.sources.source import PositionalFile, Source, check_member_size, hash_names
from unfreeze.errors import DataError
from unfreeze.text import without_surrogates

_LOCAL = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
# APPNOTE.TXT 6.3.10, sections 4.3.16, 4.3.15, 4.3.14 and 4.3.12
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_MEMBER = np.dtype(
    [
        ("signature", "S4"),
        ("made_version", "u1"),
        ("system", "u1"),
        ("version", "<u2"),
        ("flags", "<u2"),
        ("method", "<u2"),
        ("time", "<u4"),
        ("checksum", "<u4"),
        ("packed", "<u4"),
        ("size", "<u4"),
        ("name", "<u2"),
        ("extra", "<u2"),
        ("comment", "<u2"),
        ("disk", "<u2"),
        ("inside", "<u2"),
        ("attributes", "<u4"),
        ("offset", "<u4"),
    ]
)
_LENGTHS, _LENGTHS_AT = struct.Struct("<3H"), 28  # of name, extra field and comment
_COMMENT = 2**16  # longest comment after the end record, bytes
_UTF_8 = 0x800
_MOST = 2**61  # larger numbers are invalid; sums of two must not overflow
_FULL = 2**32 - 1  # the number is in the zip64 extra field
_ENCRYPTED = 0x1
_UNIX = 3
_NEXT_STEP = "Extract it (with its password, if any) and give the folder, or pack it with `zip -r`."

Rows = npt.NDArray[np.int64]


class ZipDirectory(NamedTuple):
    """One entry per member, in the order of the archive; `names` include folders.

    `packed`, `sizes`: compressed and uncompressed bytes. `offsets`: of local headers in the file.
    `systems`: operating system of the archiver. `attributes`: upper half is the mode if it is 3
    (Unix).
    """

    names: list[str]
    systems: npt.NDArray[np.uint8]
    flags: npt.NDArray[np.uint16]
    methods: npt.NDArray[np.uint16]
    checksums: npt.NDArray[np.uint32]
    packed: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    attributes: npt.NDArray[np.uint32]


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


def read_directory(path: Path) -> ZipDirectory:
    """The central directory of the zip at `path`; ValueError if it is invalid."""
    with path.open("rb") as file:
        data, prefix_bytes = _bytes(file)
    entry_offsets = _entry_offsets(data)
    members = _members(data, entry_offsets)
    if (members["signature"] != b"PK\x01\x02").any():
        raise ValueError("an entry of its directory has no signature")
    packed, sizes, offsets = (
        members[name].astype(np.int64) for name in ("packed", "size", "offset")
    )
    for row in np.flatnonzero((packed == _FULL) | (sizes == _FULL) | (offsets == _FULL)).tolist():
        start = int(entry_offsets[row]) + _MEMBER.itemsize + int(members["name"][row])
        extra = data[start : start + int(members["extra"][row])]
        sizes[row], packed[row], offsets[row] = _zip64(
            extra, [int(sizes[row]), int(packed[row]), int(offsets[row])]
        )
    return ZipDirectory(
        names=_names(data, entry_offsets, members["name"], members["flags"], members["system"]),
        systems=members["system"].copy(),
        flags=members["flags"].copy(),
        methods=members["method"].copy(),
        checksums=members["checksum"].copy(),
        packed=packed,
        sizes=sizes,
        offsets=offsets + prefix_bytes,
        attributes=members["attributes"].copy(),
    )


def _bytes(file: BinaryIO) -> tuple[bytes, int]:
    """(directory, number of bytes before the archive, which its offsets do not include)."""
    length = file.seek(0, 2)
    start = max(0, length - _COMMENT - _END.size)
    file.seek(start)
    tail = file.read()
    plain = tail[-_END.size :].startswith(b"PK\x05\x06") and tail.endswith(b"\0\0")
    position = len(tail) - _END.size if plain else tail.rfind(b"PK\x05\x06")
    if position < 0 or len(tail) - position < _END.size:
        raise ValueError("it has no directory at its end")
    *_, size, offset, _ = _END.unpack_from(tail, position)
    end = start + position
    end, size, offset = _end_64(file, end) or (end, size, offset)
    directory_start = end - size
    if directory_start < 0 or directory_start < offset:
        raise ValueError("its directory is not at the offset in its end record")
    file.seek(directory_start)
    return file.read(size), directory_start - offset


def _end_64(file: BinaryIO, end: int) -> tuple[int, int, int] | None:
    """(end of the directory, its size, its offset) of a zip64 archive; None for others."""
    start = end - _LOCATOR.size - _END_64.size
    if start < 0:
        return None
    file.seek(start)
    record, locator = file.read(_END_64.size), file.read(_LOCATOR.size)
    if not locator.startswith(b"PK\x06\x07") or not record.startswith(b"PK\x06\x06"):
        return None
    _, disk, _, disks = _LOCATOR.unpack(locator)
    if disk or disks > 1:
        raise ValueError("it is one part of several")
    size, offset = _END_64.unpack(record)[-2:]
    return start, size, offset


def _entry_offsets(data: bytes) -> npt.NDArray[np.int64]:
    """The offset of each entry in the directory."""
    offsets, offset, end = [], 0, len(data)
    lengths, fixed = _LENGTHS.unpack_from, _MEMBER.itemsize
    while offset + fixed <= end:
        offsets.append(offset)
        name, extra, comment = lengths(data, offset + _LENGTHS_AT)
        offset += fixed + name + extra + comment
    if offset != end:
        raise ValueError("its directory is truncated")
    return np.array(offsets, np.int64)


def _members(data: bytes, entry_offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    if not len(entry_offsets):
        return np.zeros(0, _MEMBER)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.frombuffer(data, np.uint8), _MEMBER.itemsize
    )
    return np.ascontiguousarray(windows[entry_offsets]).view(_MEMBER)[:, 0]


def _zip64(extra: bytes, numbers: list[int]) -> list[int]:
    """Size, compressed size and offset, from the extra field if they are _FULL."""
    position = 0
    while position + 4 <= len(extra):
        header_id, length = struct.unpack_from("<2H", extra, position)
        if header_id == 1:
            field = extra[position + 4 : position + 4 + length]
            full = [i for i, number in enumerate(numbers) if number == _FULL]
            if len(field) < 8 * len(full):
                raise ValueError("an entry of its directory has no 64-bit numbers")
            for i, number in zip(full, struct.unpack_from(f"<{len(full)}Q", field), strict=True):
                numbers[i] = min(number, _MOST)
            break
        position += 4 + length
    return numbers


def _names(
    data: bytes,
    entry_offsets: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.uint16],
    flags: npt.NDArray[np.uint16],
    systems: npt.NDArray[np.uint8],
) -> list[str]:
    """Names as UTF-8 (with surrogate escapes) if flagged so or written on Unix, else cp437."""
    starts = entry_offsets + _MEMBER.itemsize
    ends = starts + lengths
    raw = [data[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    if all(map(bytes.isascii, raw)):
        return [name.decode() for name in raw]
    all_utf_8 = all(map(_is_utf_8, raw))  # some tools write UTF-8 without the flag
    utf_8 = (flags & _UTF_8).astype(bool) | (systems == _UNIX) | all_utf_8
    return [
        name.decode("utf-8", "surrogateescape") if is_utf_8 else name.decode("cp437")
        for name, is_utf_8 in zip(raw, utf_8.tolist(), strict=True)
    ]


def _is_utf_8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
