"""The directory at a zip's end as columns: a million members are no million objects."""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

# of APPNOTE.TXT 6.3.10: 4.3.16, 4.3.15, 4.3.14 and 4.3.12
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
_COMMENT = 2**16  # bytes that may follow the end record
_UTF_8, _UNIX = 0x800, 3
_MOST = 2**61  # what is larger is wrong, and sums of these still are numbers
_FULL = 2**32 - 1  # the number stands in the extra field


class Directory(NamedTuple):
    """One entry a member, in the archive's order; `names` as written, folders included.

    `packed`, `sizes`: bytes. `offsets`: of local headers, from the start of the file. `systems`
    and `attributes`: who made it, and the mode in its upper half where that is 3 (Unix).
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


def read_directory(path: Path) -> Directory:
    """The members that the file at `path` names; ValueError says what is wrong with it."""
    with path.open("rb") as file:
        data, before = _bytes(file)
    places = _places(data)
    members = _members(data, places)
    if (members["signature"] != b"PK\x01\x02").any():
        raise ValueError("an entry of its directory has another beginning")
    packed, sizes, offsets = (
        members[name].astype(np.int64) for name in ("packed", "size", "offset")
    )
    for row in np.flatnonzero((packed == _FULL) | (sizes == _FULL) | (offsets == _FULL)).tolist():
        start = int(places[row]) + _MEMBER.itemsize + int(members["name"][row])
        extra = data[start : start + int(members["extra"][row])]
        sizes[row], packed[row], offsets[row] = _wide(
            extra, [int(sizes[row]), int(packed[row]), int(offsets[row])]
        )
    return Directory(
        names=_names(data, places, members["name"], members["flags"], members["system"]),
        systems=members["system"].copy(),
        flags=members["flags"].copy(),
        methods=members["method"].copy(),
        checksums=members["checksum"].copy(),
        packed=packed,
        sizes=sizes,
        offsets=offsets + before,
        attributes=members["attributes"].copy(),
    )


def _bytes(file: BinaryIO) -> tuple[bytes, int]:
    """(the directory, bytes that stand before the archive and that its offsets don't count)."""
    length = file.seek(0, 2)
    start = max(0, length - _COMMENT - _END.size)
    file.seek(start)
    tail = file.read()
    plain = tail[-_END.size :].startswith(b"PK\x05\x06") and tail.endswith(b"\0\0")
    found = len(tail) - _END.size if plain else tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) - found < _END.size:
        raise ValueError("it has no directory at its end")
    *_, size, offset, _ = _END.unpack_from(tail, found)
    end = start + found
    end, size, offset = _end_64(file, end) or (end, size, offset)
    place = end - size
    if place < 0 or place < offset:
        raise ValueError("its directory does not lie where its end says")
    file.seek(place)
    return file.read(size), place - offset


def _end_64(file: BinaryIO, end: int) -> tuple[int, int, int] | None:
    """(where the directory ends, its size, its offset) of a large archive; None for others."""
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


def _places(data: bytes) -> npt.NDArray[np.int64]:
    """Where each entry begins."""
    places, place, end = [], 0, len(data)
    lengths, fixed = _LENGTHS.unpack_from, _MEMBER.itemsize
    while place + fixed <= end:
        places.append(place)
        name, extra, comment = lengths(data, place + _LENGTHS_AT)
        place += fixed + name + extra + comment
    if place != end:
        raise ValueError("its directory is cut")
    return np.array(places, np.int64)


def _members(data: bytes, places: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    if not len(places):
        return np.zeros(0, _MEMBER)
    beginnings = np.lib.stride_tricks.sliding_window_view(
        np.frombuffer(data, np.uint8), _MEMBER.itemsize
    )
    return np.ascontiguousarray(beginnings[places]).view(_MEMBER)[:, 0]


def _wide(extra: bytes, numbers: list[int]) -> list[int]:
    """Size, packed size and offset, those that are full taken from the extra field."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            field = extra[place + 4 : place + 4 + length]
            full = [k for k, number in enumerate(numbers) if number == _FULL]
            if len(field) < 8 * len(full):
                raise ValueError("an entry of its directory lacks its 64-bit numbers")
            for k, number in zip(full, struct.unpack_from(f"<{len(full)}Q", field), strict=True):
                numbers[k] = min(number, _MOST)
            break
        place += 4 + length
    return numbers


def _names(
    data: bytes,
    places: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.uint16],
    flags: npt.NDArray[np.uint16],
    systems: npt.NDArray[np.uint8],
) -> list[str]:
    """What is no UTF-8, and said to be, or a name of Unix, is held by surrogates."""
    starts = places + _MEMBER.itemsize
    ends = starts + lengths
    raw = [data[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    if all(map(bytes.isascii, raw)):
        return [name.decode() for name in raw]
    whole = all(map(_is_utf_8, raw))  # systems whose names are UTF-8 need not say so
    said = (flags & _UTF_8).astype(bool) | (systems == _UNIX) | whole
    return [
        name.decode("utf-8", "surrogateescape") if known else name.decode("cp437")
        for name, known in zip(raw, said.tolist(), strict=True)
    ]


def _is_utf_8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
