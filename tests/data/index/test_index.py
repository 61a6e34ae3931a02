import numpy as np
import pytest

from unfreeze.data.index.index import NONE, TEST, TRAIN, VAL, build_index
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError

TREE = (
    "train/dog/1.png",
    "train/cat/2.png",
    "train/Zebra/3.png",
    "val/cat/4.png",
    "test/dog/5.png",
)
JUNK = ("readme.txt", "__MACOSX/train/dog/._1.png", "train/dog/Thumbs.db", "train/.DS_Store")


def indexed(path):
    return build_index(open_source(str(path)))


@pytest.mark.parametrize("pack", ["folder", "zip", "tar", "tar.gz"])
def test_the_same_files_give_the_same_index_however_they_are_packed(made, pack):
    members = made.members(f"wrap/{name}" for name in TREE) | made.members(JUNK)
    path = {
        "folder": lambda: made.folder(members),
        "zip": lambda: made.zip(members),
        "tar": lambda: made.tar(members),
        "tar.gz": lambda: made.tar(members, "data.tar.gz"),
    }[pack]()
    index = indexed(path)
    assert index.paths == sorted(f"wrap/{name}" for name in TREE)
    assert index.layout == "splits"
    assert index.classes == ("Zebra", "cat", "dog")  # by code point
    assert [index.classes[label] for label in index.labels] == ["dog", "Zebra", "cat", "dog", "cat"]
    assert index.splits.tolist() == [TEST, TRAIN, TRAIN, TRAIN, VAL]
    assert index.other == len(JUNK)
    for position, row in enumerate(index.rows):
        assert index.source.read(int(row)) == members[index.paths[position]]


def test_flat_images_have_no_labels(made):
    index = indexed(made.folder(made.members(["b.png", "a.png", "manifest.csv"])))
    assert index.layout == "flat"
    assert index.paths == ["a.png", "b.png"]
    assert index.labels.tolist() == [-1, -1]
    assert index.classes == ()
    assert index.other == 1


def test_a_image_counts_by_content_or_by_name(made):
    image = made.encoded()
    members = {"cat/no_suffix": image, "cat/page.jpg": b"<html>", "dog/notes": b"text"}
    index = indexed(made.zip(members | {"dog/odd.txt": image}))
    assert index.paths == ["cat/no_suffix", "cat/page.jpg", "dog/odd.txt"]
    assert index.other == 1


def test_images_beside_class_folders_are_counted_and_named(made):
    names = ["sheet.png", "cat/1.png", "cat/2.png", "dog/1.png"]
    index = indexed(made.folder(made.members(names)))
    assert (index.stray, index.other, len(index)) == (1, 1, 3)
    assert "outside the class folders" in index.notes[-1]


def test_flat_splits_are_unlabelled(made):
    index = indexed(made.folder(made.members(["train/1.png", "test/2.png"])))
    assert index.layout == "splits"
    assert index.labels.tolist() == [-1, -1]
    assert index.splits.tolist() == [TEST, TRAIN]


def test_a_class_that_train_does_not_know_is_named(made):
    names = ["train/cat/1.png", "train/dog/2.png", "test/wolf/3.png"]
    with pytest.raises(DataError, match=r"'wolf' of test \(test/wolf/3.png\)"):
        indexed(made.folder(made.members(names)))


def test_no_images_at_all(made):
    with pytest.raises(DataError, match=r"no images: 2 other files, .*inner\.zip"):
        indexed(made.zip({"inner.zip": b"PK", "readme": b"text"}))


def test_take_keeps_classes_and_source(made):
    index = indexed(made.folder(made.members(TREE)))
    part = index.take(np.array([3, 0]))
    assert part.paths == [index.paths[3], index.paths[0]]
    assert part.classes == index.classes
    assert part.source is index.source
    assert part.labels.tolist() == index.labels[[3, 0]].tolist()
    assert index.take(index.splits == TRAIN).paths == index.take(index.where(TRAIN)).paths


def test_a_csv_says_labels_splits_and_groups(made):
    made.folder(made.members(["x/1.png", "2.png", "3.png"]))
    table = (
        "path,label,split,group,site\n x/1.png ,dog,train,p1,A\n2.png,cat,train,p1,B\n3.png,,,,\n"
    )
    (made.root / "data" / "list.csv").write_text(table)
    index = indexed(made.root / "data" / "list.csv")
    assert index.paths == ["x/1.png", "2.png", "3.png"]  # the list's own order
    assert index.classes == ("cat", "dog")
    assert index.labels.tolist() == [1, 0, -1]
    assert index.splits.tolist() == [TRAIN, TRAIN, NONE]
    assert index.groups == ["p1", "p1", "3.png"]
    assert index.source.column("site") == ["A", "B", ""]
    assert index.source.column("absent") is None


def test_a_csv_of_paths_alone_is_flat(made):
    (made.folder(made.members(["1.png"])) / "list.csv").write_text("path\n1.png\n")
    assert indexed(made.root / "data" / "list.csv").layout == "flat"


def test_a_csv_with_an_unknown_split_names_it(made):
    (made.folder(made.members(["1.png"])) / "list.csv").write_text("path,split\n1.png,extra\n")
    with pytest.raises(DataError, match=r"'extra' for 1\.png"):
        indexed(made.root / "data" / "list.csv")


def test_real_archives(shared):
    cifar = indexed(shared / "data" / "cifar10.zip")
    assert (len(cifar), cifar.other, cifar.layout, len(cifar.classes)) == (60_000, 0, "splits", 10)
    assert np.bincount(cifar.splits).tolist() == [0, 50_000, 0, 10_000]
    trash = indexed(shared / "data" / "trashnet-subset.zip")
    assert (len(trash), trash.layout) == (720, "classes")
    assert np.bincount(trash.labels).tolist() == [120] * 6


def test_where_no_label_is_learned_a_strange_class_is_one_more(made):
    names = ["train/cat/1.png", "train/dog/2.png", "test/wolf/3.png"]
    source = open_source(str(made.folder(made.members(names))))
    index = build_index(source, strange_classes=True)
    assert index.classes == ("cat", "dog", "wolf") and sorted(index.labels) == [0, 1, 2]
