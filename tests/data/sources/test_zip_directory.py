import io
import random
import struct
import warnings
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfreeze.data.sources import zip as zip_module
from unfreeze.data.sources.zip import read_directory


def theirs(data):
    """As zipfile reads it; names of no stated encoding are UTF-8 where all names are."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        raw = [i.orig_filename.encode("utf-8" if i.flag_bits & 0x800 else "cp437") for i in members]
        try:
            names = [name.decode() for name in raw]
        except UnicodeDecodeError:
            names = [i.orig_filename for i in members]
        return [
            (
                *(name, i.create_system, i.flag_bits, i.compress_type, i.CRC),
                *(i.compress_size, i.file_size, i.header_offset, i.external_attr),
            )
            for i, name in zip(members, names, strict=True)
        ]


def ours(path):
    found = read_directory(path)
    columns = [column.tolist() for column in found[1:]]
    return list(zip(found.names, *columns, strict=True))


def packed(names, comment=b"", wide=False, before=b""):
    """A zip of members with those names, folders among them."""
    held = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name", UserWarning)
        with zipfile.ZipFile(held, "w") as archive:
            archive.comment = comment
            for number, name in enumerate(names):
                info = zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0))
                info.extra = b"\x55\x54\x05\x00\x01\x02\x03\x04\x05" * (number % 3)
                info.comment = b"said" * (number % 2)
                info.external_attr = number << 16
                info.compress_type = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2]
                with archive.open(info, "w", force_zip64=wide) as file:
                    file.write(bytes(number))
    return before + held.getvalue()


LIMIT = zip_module._MOST
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(
    names=st.lists(NAMES.filter(lambda name: "\0" not in name), max_size=8),
    # zipfile itself is misled by a comment that holds the mark of the end
    comment=st.binary(max_size=60).filter(lambda comment: b"PK\5\6" not in comment),
    wide=st.booleans(),
    before=st.binary(max_size=60),
)
def test_it_is_what_zipfile_reads(tmp_path_factory, names, comment, wide, before):
    data = packed(names, comment, wide, before)
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    path.write_bytes(data)
    assert ours(path) == theirs(data)


def test_what_stands_behind_the_end_is_passed_over(tmp_path):
    data = packed(["a.png"], b"said") + b"more"
    (tmp_path / "a.zip").write_bytes(data)
    assert ours(tmp_path / "a.zip") == theirs(data)


def test_names_that_are_utf_8_without_saying_so(tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cafe/1.png", b"x")
    path.write_bytes(path.read_bytes().replace(b"cafe/", "é".encode() + b"fe/"))
    assert read_directory(path).names == ["éfe/1.png"]


def test_names_of_unix_are_bytes_as_in_the_folder_that_was_packed(tmp_path):
    data = packed(["aeb.png", "c.png"]).replace(b"aeb.png", b"a\x84b.png")
    (tmp_path / "a.zip").write_bytes(data)
    assert read_directory(tmp_path / "a.zip").names == ["a\udc84b.png", "c.png"]


def test_names_of_old_archives_are_cp437(tmp_path):
    data = packed(["aeb.png", "c.png"]).replace(b"aeb.png", b"a\x84b.png")
    data = data.replace(b"PK\x01\x02\x14\x03", b"PK\x01\x02\x14\x00")  # made by DOS
    (tmp_path / "a.zip").write_bytes(data)
    assert ours(tmp_path / "a.zip") == theirs(data)
    assert read_directory(tmp_path / "a.zip").names[0] == "aäb.png"


def test_numbers_of_64_bits_are_read(tmp_path, monkeypatch):
    """As zipfile writes them beyond its limits, which are lowered here."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    data = packed([f"{number:03}.png" for number in range(200)], wide=True)
    assert b"PK\x06\x06" in data and b"PK\x06\x07" in data
    (tmp_path / "a.zip").write_bytes(data)
    found = ours(tmp_path / "a.zip")
    assert found == theirs(data)
    assert found[199][6] == 199 and found[199][7] > 100


def test_a_directory_that_ends_anew_in_its_comment_is_found_as_zipfile_finds_it(tmp_path):
    data = packed(["a.png"], comment=b"PK\x05\x06 and more of it, long enough to be an end")
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(zipfile.BadZipFile):
        theirs(data)
    with pytest.raises(ValueError, match="directory"):
        read_directory(tmp_path / "a.zip")


def test_one_of_several_parts_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    data = packed(["a.png", "b.png"])
    place = data.index(b"PK\x06\x07")
    (tmp_path / "a.zip").write_bytes(data[: place + 16] + struct.pack("<L", 3) + data[place + 20 :])
    with pytest.raises(ValueError, match="several"):
        read_directory(tmp_path / "a.zip")


@pytest.mark.parametrize("wide", [False, True])
def test_damage_is_a_value_error_or_read_as_zipfile_reads_it(tmp_path, monkeypatch, wide):
    if wide:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    whole = packed(["a.png", "b/", "b/ü.png", "c.png", "d.png"], comment=b"x", wide=wide)
    start, draw, path = whole.index(b"PK\x01\x02"), random.Random(0), tmp_path / "a.zip"
    same = refused = 0
    for _ in range(1_500):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(start, len(data))] = draw.choice((0, 1, 127, 128, 255))
        if draw.random() < 0.1:
            del data[draw.randrange(start, len(data)) :]
        path.write_bytes(data)
        try:
            own = ours(path)
        except ValueError:
            refused += 1
            continue
        try:
            other = theirs(bytes(data))
        except Exception:  # what it refuses may be read
            continue
        # of bytes that are no text zipfile makes letters
        pairs = zip(own, other, strict=True)
        other = [one if one[0].isascii() else (mine[0], *one[1:]) for mine, one in pairs]
        assert own == [tuple(n if type(n) is str else min(n, LIMIT) for n in row) for row in other]
        same += 1
    assert same > 200 and refused > 200
