import os
import pickle
import stat
import threading
import time
import zipfile

import pytest

from unfreeze.data.images.errors import Undecodable
from unfreeze.data.sources.open import open_source
from unfreeze.data.sources.source import MEMBER_LIMIT
from unfreeze.errors import DataError


def patched(path, old: bytes, new: bytes, *, last: bool = False):
    data = path.read_bytes()
    place = data.rindex(old) if last else data.index(old)
    path.write_bytes(data[:place] + new + data[place + len(old) :])
    return path


def test_members_read_as_zipfile_reads_them(made):
    members = {"a/stored.bin": os.urandom(5_000), "a/deflated.txt": b"x" * 5_000, "empty": b""}
    path = made.root / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            method = zipfile.ZIP_DEFLATED if "deflated" in name else zipfile.ZIP_STORED
            archive.writestr(name, data, method)
        archive.mkdir("folder")
    source = open_source(str(path))
    assert source.names == list(members)
    assert source.sizes.tolist() == [5_000, 5_000, 0]
    for row, data in enumerate(members.values()):
        assert source.read(row) == data
        assert source.head(row, 16) == data[:16]


def test_a_prefix_before_the_archive_and_64_bit_records_do_not_matter(made):
    path = made.root / "data.zip"
    with (
        zipfile.ZipFile(path, "w") as archive,
        archive.open("a.bin", "w", force_zip64=True) as file,
    ):
        file.write(b"content")
    path.write_bytes(b"#!/bin/sh\n" * 100 + path.read_bytes())
    assert open_source(str(path)).read(0) == b"content"


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "C:x"),
        *("a\\..\\..\\b", "..\\evil.png", "\\\\host\\x", "D:\\x"),
    ],
)
def test_names_that_leave_the_archive_are_refused_by_name(made, name):
    path = made.zip({"good.png": b"", name: b""})
    with pytest.raises(DataError) as raised:
        open_source(str(path))
    assert repr(name.replace("\\", "/")) in raised.value.sentence


def test_two_dots_inside_a_name_are_a_name(made):
    assert open_source(str(made.zip({"a..b/c...png": b"x"}))).names == ["a..b/c...png"]


def test_links_are_skipped_and_counted(made):
    path = made.zip({"a.png": b"x"})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    source = open_source(str(path))
    assert (source.names, source.skipped) == (["a.png"], 1)


def encrypted(path, place):
    """The member in this place of the archive is said to be encrypted."""
    data = bytearray(path.read_bytes())
    for signature, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        for _ in range(place + 1):
            start = data.index(signature, start + 1)
        data[start + flag] |= 1
    path.write_bytes(data)


def test_where_all_is_encrypted_it_is_refused_by_name(made):
    path = made.zip({"secret.png": b"x" * 100})
    encrypted(path, 0)
    with pytest.raises(DataError, match=r"'secret\.png' is encrypted"):
        open_source(str(path))


def test_one_encrypted_member_does_not_cost_the_others(made):
    path = made.zip({"a.png": b"first", "secret.png": b"x" * 100, "z.png": b"last"})
    encrypted(path, 1)
    source = open_source(str(path))
    assert source.names == ["a.png", "secret.png", "z.png"]
    assert (source.read(0), source.read(2)) == (b"first", b"last")
    with pytest.raises(Undecodable, match="encrypted"):
        source.read(1)
    assert source.head(1, 100) == b""


def test_a_method_that_is_not_read_is_named(made):
    path = made.root / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("odd.png", b"x")
    with pytest.raises(DataError, match=r"'odd\.png' is compressed with method 14"):
        open_source(str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("good.png", b"y")
    source = open_source(str(path))
    assert source.read(1) == b"y"
    with pytest.raises(Undecodable, match="compressed with method 14"):
        source.read(0)


def test_of_equal_names_the_last_counts_and_it_is_said(made):
    path = made.zip({"a.png": b"old", "b.png": b"b"})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.png", b"new")
    source = open_source(str(path))
    assert [source.read(row) for row in range(2)] == [b"b", b"new"]
    assert source.skipped == 1
    assert "a.png" in source.notes[0]


def test_damage_is_found_by_the_checksum(made):
    path = made.root / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"some stored content")
    patched(path, b"stored", b"storeD")
    with pytest.raises(Undecodable, match="checksum"):
        open_source(str(path)).read(0)


def test_damage_in_packed_bytes_or_the_members_header(made):
    path = made.zip({"a.png": bytes(range(256)) * 8, "b.png": b"b"})
    data = bytearray(path.read_bytes())
    data[40:60] = b"\xff" * 20
    data[data.index(b"PK\x03\x04", 4)] = 0
    path.write_bytes(data)
    source = open_source(str(path))
    for row in range(2):
        with pytest.raises(Undecodable):
            source.read(row)
        assert isinstance(source.head(row, 8), bytes)


def test_a_member_that_unpacks_to_more_than_it_declares_is_not_unpacked(made):
    path = made.zip({"a.png": b"0" * 1_000_000})
    size = (1_000_000).to_bytes(4, "little")
    patched(path, size, (100).to_bytes(4, "little"), last=True)
    source = open_source(str(path))
    assert source.sizes.tolist() == [100]
    with pytest.raises(Undecodable):
        source.read(0)


@pytest.mark.parametrize("claimed", [MEMBER_LIMIT + 1, 70 * 2**20])
def test_a_bomb_is_refused_before_it_is_unpacked(made, claimed):
    path = made.zip({"a.png": b"0" * 1_000_000})
    patched(path, (1_000_000).to_bytes(4, "little"), claimed.to_bytes(4, "little"), last=True)
    with pytest.raises(Undecodable) as raised:
        open_source(str(path)).read(0)
    assert raised.value.reason == "bomb"


@pytest.mark.parametrize("cut", [0, 10, -10, -30])
def test_a_cut_archive_is_a_data_error(made, cut):
    path = made.zip(made.members(["a/1.png", "a/2.png"]))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="truncated or corrupt"):
        open_source(str(path))


def test_threads_and_forks_read_the_same(made):
    contents = {f"{n:03}.bin": os.urandom(2_000 + n) for n in range(200)}
    source = open_source(str(made.zip(contents)))
    wrong: list[str] = []

    def read_all(shift: int) -> None:
        for row in range(200):
            name = source.names[(row + shift) % 200]
            if source.read((row + shift) % 200) != contents[name]:
                wrong.append(name)

    threads = [threading.Thread(target=read_all, args=(50 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    if not child:
        read_all(0)
        os._exit(bool(wrong))
    read_all(100)
    assert os.waitpid(child, 0)[1] == 0
    assert not wrong


def test_a_pickled_source_reads_on(made):
    source = pickle.loads(pickle.dumps(open_source(str(made.zip({"a": b"content"})))))
    assert source.read(0) == b"content"


def test_sixty_thousand_members_open_in_a_couple_of_seconds(shared):
    started = time.perf_counter()
    source = open_source(str(shared / "data" / "cifar10.zip"))
    assert time.perf_counter() - started < 4
    assert len(source) == 60_000


def test_folders_that_windows_wrote_with_backslashes(made):
    """As PowerShell 5 and old .NET write them; entries of folders end in one, too."""
    path = made.root / "w.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("cat\\", "cat\\1.png", "dog\\in\\2.png", "dog/3.png"):
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, name.encode())
    source = open_source(str(path))
    assert source.names == ["cat/1.png", "dog/in/2.png", "dog/3.png"]
    assert source.read(1) == b"dog\\in\\2.png"
    assert "Backslashes" in source.notes[-1]
