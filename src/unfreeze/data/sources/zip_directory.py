"""Reads the central directory of a zip into arrays: fast for a million members."""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

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
_UTF_8, _UNIX = 0x800, 3
_MOST = 2**61  # larger numbers are invalid; sums of two must not overflow
_FULL = 2**32 - 1  # the number is in the zip64 extra field


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
