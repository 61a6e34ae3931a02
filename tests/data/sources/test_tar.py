import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest

from unfreeze.data.images.errors import Undecodable
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError


def special(path, **fields):
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("special.png")
        for field, value in fields.items():
            setattr(info, field, value)
        archive.addfile(info)


@pytest.mark.parametrize("name", ["data.tar", "data.tar.gz", "data.tgz"])
def test_members_are_read_in_place(made, name):
    long = "folder/" * 40 + "x.png"
    members = {"./a/1.png": b"one", "a/2.png": bytes(1_000), long: b"long", "empty": b""}
    source = open_source(str(made.tar(members, name)))
    assert source.names == ["a/1.png", "a/2.png", long, "empty"]
    assert [source.read(row) for row in range(4)] == list(members.values())
    assert source.head(1, 5) == bytes(5)
    again = pickle.loads(pickle.dumps(source))
    assert again.read(2) == b"long"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_skipped_and_counted(made, kind):
    path = made.tar({"a.png": b"x"})
    special(path, type=kind, linkname="/etc/passwd")
    source = open_source(str(path))
    assert (source.names, source.skipped) == (["a.png"], 1)


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../b", "..\\evil.png"])
def test_names_that_leave_the_archive_are_refused_by_name(made, name):
    path = made.tar({"a.png": b"x", name: b""})
    with pytest.raises(DataError) as raised:
        open_source(str(path))
    assert repr(name.replace("\\", "/")) in raised.value.sentence


def test_of_equal_names_the_last_counts(made):
    path = made.tar({"a.png": b"old"})
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("a.png")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"new"))
    source = open_source(str(path))
    assert [source.read(row) for row in range(len(source))] == [b"new"]
    assert source.skipped == 1


@pytest.mark.parametrize("cut", [100, 700, 1_600, 2_200])
def test_a_cut_archive_is_a_data_error(made, cut):
    path = made.tar({"a.png": bytes(600), "b.png": bytes(600)})  # 512 + 1024 bytes each
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="truncated or corrupt"):
        open_source(str(path))


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(made):
    path = made.tar({"a.png": bytes(600), "b.png": bytes(600), "c.png": b""})
    data = bytearray(path.read_bytes())
    data[1536:1636] = b"\xff" * 100  # the second member's name
    path.write_bytes(data)
    with pytest.raises(DataError, match="no valid header at byte 1,536"):
        open_source(str(path))


def test_an_archive_without_an_end_mark_is_read(made):
    path = made.tar({"a.png": bytes(512)})
    path.write_bytes(path.read_bytes()[:1024])
    assert open_source(str(path)).names == ["a.png"]


def test_an_archive_that_shrinks_later(made):
    path = made.tar({"a.png": bytes(600)})
    source = open_source(str(path))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(Undecodable):
        source.read(0)


@pytest.mark.parametrize("damage", ["cut", "flipped", "plain", "empty"])
def test_a_damaged_gzip_is_a_data_error(made, damage):
    path = made.tar({"a.png": np.random.default_rng(0).bytes(5_000)}, "data.tar.gz")
    data = path.read_bytes()
    flipped = data[:2_000] + bytes(50) + data[2_050:]
    path.write_bytes(
        {"cut": data[:3_000], "flipped": flipped, "plain": b"text", "empty": b""}[damage]
    )
    with pytest.raises(DataError):
        open_source(str(path))


def test_a_packed_tar_that_grows_without_end_is_refused(made):
    path = made.root / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(bytes(2**20))
    with pytest.raises(DataError, match="decompresses to more than 268,435,456 bytes"):
        open_source(str(path))


def test_the_real_tar_holds_what_the_zip_holds(shared):
    packed = open_source(str(shared / "data" / "cifar10.tar.gz"))
    plain = open_source(str(shared / "data" / "cifar10.zip"))
    row_of = {name: row for row, name in enumerate(packed.names)}
    assert set(row_of) == set(plain.names)
    for row in range(0, 60_000, 7_001):
        assert packed.read(row_of[plain.names[row]]) == plain.read(row)


def test_folders_with_backslashes(made):
    source = open_source(str(made.tar({"cat\\1.png": b"x", "dog/2.png": b"y"})))
    assert source.names == ["cat/1.png", "dog/2.png"]
    assert "Backslashes" in source.notes[-1]
