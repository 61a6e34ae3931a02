import hashlib
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from unfreeze.data.index.index import build_index
from unfreeze.data.sources.folder import FileSource
from unfreeze.data.sources.open import open_source
from unfreeze.data.sources.source import hash_names
from unfreeze.errors import DataError

BYTES_A_FILE = 200  # beyond the name itself


def test_what_is_not_there_and_what_is_no_source(made):
    with pytest.raises(DataError, match="no folder or file"):
        open_source(str(made.root / "absent"))
    image = made.folder({"a.png": b"x"}) / "a.png"
    with pytest.raises(DataError, match="neither a folder nor"):
        open_source(str(image))
    (made.root / "empty").mkdir()
    with pytest.raises(DataError, match="contains no files"):
        open_source(str(made.root / "empty"))


def test_a_folder_lists_files_at_any_depth_and_follows_links(made):
    root = made.folder({"b/2.png": b"two", "a.png": b"one", "b/c/3.png": b"three"})
    (root / "b" / "loop").symlink_to(root)
    (root / "link.png").symlink_to(root / "a.png")
    (root / "lost.png").symlink_to(root / "nowhere")
    (root / "self.png").symlink_to(root / "self.png")
    os.mkfifo(root / "pipe.png")
    source = open_source(str(root))
    assert source.names == ["a.png", "b/2.png", "b/c/3.png", "link.png", "lost.png", "self.png"]
    assert source.sizes.tolist() == [3, 3, 5, 3, 0, 0]
    assert source.read(3) == b"one"
    assert source.head(2, 2) == b"th"
    assert source.head(4, 2) == b""
    with pytest.raises(OSError, match="No such file"):
        source.read(4)


def test_names_that_are_not_utf_8_are_read(made):
    root = made.folder({"a.png": b"one"})
    (root / os.fsdecode(b"\xff.png")).write_bytes(b"odd")
    source = open_source(str(root))
    assert sorted(source.read(row) for row in range(2)) == [b"odd", b"one"]
    assert len(source.fingerprint()) == 64


def test_a_digest_is_of_every_name_and_number_however_many():
    """Kept verdicts are found by it: it must not change."""
    names = [f"ü{number}/\udcff.png" for number in range(10_000)]
    column = np.arange(10_000, dtype=np.int64)
    expected = hashlib.sha256()
    for name in names:
        expected.update(name.encode("utf-8", "surrogateescape") + b"\0")
    expected.update(column.tobytes())
    assert hash_names(names, column) == expected.hexdigest()
    assert hash_names([]) == hashlib.sha256().hexdigest()


def test_fingerprints_follow_the_content(made):
    members = made.members(["a/1.png", "a/2.png"])
    prints = {open_source(str(made.zip(members))).fingerprint()}
    assert open_source(str(made.zip(members, "copy.zip"))).fingerprint() in prints
    changed = members | {"a/2.png": members["a/1.png"]}
    prints.add(open_source(str(made.zip(changed, "other.zip"))).fingerprint())
    root = made.folder(members)
    prints.add(open_source(str(root)).fingerprint())
    os.utime(root / "a/1.png", (1, 1))
    prints.add(open_source(str(root)).fingerprint())
    assert len(prints) == 4


def test_digits_come_with_a_fixed_split():
    source = open_source("digits")
    splits = np.array(source.splits)
    assert ((splits == "train").sum(), (splits == "test").sum()) == (1437, 360)
    image = source.read(7)
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
    assert (image.min(), image.max()) == (0, 255)
    assert source.names[7] == f"{source.splits[7]}/7/0007.png"
    index = build_index(source)
    assert index.classes == tuple("0123456789")
    share = np.bincount(index.labels[splits == "test"]) / np.bincount(index.labels)
    assert np.abs(share - 360 / 1797).max() < 0.005
    # the split is fixed for good: published figures rest on it
    test = np.flatnonzero(splits == "test")
    assert (test[:8].tolist(), int(test.sum())) == ([0, 3, 4, 6, 14, 23, 24, 25], 317_091)


def test_cifar10_is_what_torchvision_gives(made, monkeypatch):
    class Fake:
        classes = ("airplane", "cat")

        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            print("Files already downloaded")  # noqa: T201
            self.data = np.full((3 if train else 2, 32, 32, 3), 7, np.uint8)
            self.targets = [0, 1, 0] if train else [1, 1]

        def __len__(self) -> int:
            return len(self.data)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fake)
    index = build_index(open_source("cifar10", data_root=str(made.root)))
    assert index.paths[:2] == ["train/airplane/0.png", "train/cat/1.png"]
    assert index.splits.tolist() == [1, 1, 1, 3, 3]


def test_cifar10_that_cannot_be_fetched_says_the_way_out(made, monkeypatch, capsys):
    def fail(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", fail)
    monkeypatch.setattr("urllib.request.urlretrieve", fail)
    with pytest.raises(DataError, match="cannot be downloaded") as raised:
        open_source("cifar10", data_root=str(made.root / "absent"))
    assert "--data-root" in raised.value.next_step
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,label\na.png,x\nb.png,y\n", "line 3: the file 'b.png' does not exist"),
        ("label,age\nx,7\n", "no column `path`; its columns are label, age"),
        ("path,label\na.png\n", "line 2: 1 fields"),
        ("path,label\na.png,x\na.png,y\n", "lists a.png twice, on lines 2 and 3"),
        ("path\nfolder\n", "'folder' is not a regular file"),
        ("path\n", "contains no files"),
        ("", "is empty"),
    ],
)
def test_what_is_wrong_with_a_csv_is_named_with_its_line(made, table, message):
    root = made.folder({"a.png": b"x", "folder/b.txt": b""})
    (root / "list.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        open_source(str(root / "list.csv"))


def names_of(count: int) -> list[str]:
    return [f"train/class_{n % 100:03}/image_{n:06}.jpg" for n in range(count)]


def beyond_names(make, count: int) -> float:
    """Bytes a file that source and index hold, without the names themselves."""
    tracemalloc.start()
    index = build_index(make())
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (held - sum(len(name) + 49 for name in index.source.names)) / count


def test_the_index_of_a_zip_is_light(made):
    path = made.root / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names_of(50_000):
            archive.writestr(zipfile.ZipInfo(name), b"")
    assert beyond_names(lambda: open_source(str(path)), 50_000) < BYTES_A_FILE


def test_the_index_of_a_folder_is_light(made):
    def make() -> FileSource:
        source = FileSource(made.root, names_of(50_000), [1] * 50_000, [2] * 50_000)
        source.kind, source.where = "folder", "made"
        return source

    assert beyond_names(make, 50_000) < BYTES_A_FILE


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_a_folder_that_is_called_like_a_built_in_dataset_is_read(made, monkeypatch, name):
    monkeypatch.chdir(made.root)
    monkeypatch.setattr("unfreeze.data.sources.open.load_cifar10", lambda root, fetch: root)
    made.folder(made.members(["one/1.png", "two/2.png"]), name)
    source = open_source(name)
    assert build_index(source).classes == ("one", "two")
    assert source.notes[-1].endswith(f"The built-in dataset is builtin:{name}.")
    built = open_source(f"builtin:{name}")
    assert built == "data" if name == "cifar10" else len(built) == 1797


def test_names_of_built_in_datasets(made, monkeypatch):
    monkeypatch.chdir(made.root)
    assert len(open_source("digits")) == len(open_source("builtin:digits")) == 1797
    with pytest.raises(DataError, match="no built-in dataset 'mnist'"):
        open_source("builtin:mnist")
    (made.root / "digits").mkdir()
    with pytest.raises(DataError, match="digits contains no files") as raised:
        open_source("digits")
    assert "builtin:digits" in raised.value.next_step
