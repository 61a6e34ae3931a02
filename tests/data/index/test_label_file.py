"""Labels and splits from elsewhere: joined by name, never by guess."""

from pathlib import Path

import pytest

from unfreeze.data.index.index import TEST, TRAIN, VAL, build_index
from unfreeze.data.index.label_file import read_listing, read_pattern
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError, UsageError

NAMES = ("wrap/a/1.png", "wrap/a/2.png", "wrap/b/1.png", "wrap/b/3.jpg")


@pytest.fixture
def table(tmp_path):
    def write(text: str, name: str = "labels.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        return path

    return write


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("wrap/a/2.png", 1),  # the path itself
        ("./wrap/a/2.png", 1),
        ("a/1.png", 0),  # an end of it
        ("/data/old/wrap/b/1.png", 2),  # a path of which it is the end
        ("2.png", 1),
        ("wrap\\b\\3.jpg", 3),
        ("3", 3),  # without the ending
    ],
)
def test_a_line_names_a_image(table, line, place):
    found = read_listing(table(f"path,label\n{line},cat\n"), NAMES, needs="label")
    assert found.columns["label"] == ["cat" if n == place else "" for n in range(4)]
    assert found.listed == [n == place for n in range(4)]
    assert found.notes == ()


@pytest.mark.parametrize("line", ["1.png", "1"])
def test_a_line_that_fits_several_is_refused(table, line):
    with pytest.raises(DataError, match="matches several images"):
        read_listing(table(f"path,label\n{line},cat\n"), NAMES, needs="label")


def test_another_folders_image_of_the_same_name_is_another_image(table):
    path = table("path,label\nc/3.jpg,cat\nwrap/a/3.jpg,cat\na/1.png,dog\n")
    found = read_listing(path, NAMES, needs="label")
    assert found.columns["label"] == ["dog", "", "", ""]
    assert found.notes == (f"Lines of {path} that match no image: 2 (first: c/3.jpg).",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("label\ncat\n", "no column `path`"),
        ("path,name\na/1.png,x\n", "no column `label`"),
        ("path,label\na/1.png\n", "line 2: 1 fields"),
        ("path,label\nx.png,cat\n", "matches none of the 4 images"),
        ("path,label\na/1.png,cat\nwrap/a/1.png,dog\n", "lists wrap/a/1.png twice"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(table, text, message):
    with pytest.raises(DataError, match=message):
        read_listing(table(text), NAMES, needs="label")


def test_other_names_of_columns_and_columns_of_ones_own(table):
    path = table("Image_ID,Patient,Class\n2,p7,cat\n3,p8,dog\n")
    found = read_listing(path, NAMES, needs="label")
    assert found.columns["label"] == ["", "cat", "", "dog"]
    assert found.columns["Patient"] == ["", "p7", "", "p8"]


def test_a_pattern_gives_labels():
    assert read_pattern(r"/([ab])/", NAMES).columns["label"] == ["a", "a", "b", "b"]
    assert read_pattern(r"(3)\.jpg", NAMES).columns["label"] == ["", "", "", "3"]
    for pattern in ("(", "nowhere(x)", "/a/"):
        with pytest.raises(UsageError, match="--labels"):
            read_pattern(pattern, NAMES)


def test_an_index_with_labels_from_elsewhere(made, table):
    members = made.members(("top.png", *(f"box/{n}.png" for n in range(5)), "other/9.png"))
    source = open_source(str(made.zip(members)))
    path = table(
        "path,label,split,group\n0,cat,train,p1\n1,dog,train,p1\n2,cat,val,p2\n3,dog,test,\ntop,cat,,\n"
    )
    index = build_index(source, labels=str(path))
    assert index.paths == [*(f"box/{n}.png" for n in range(5)), "other/9.png", "top.png"]
    assert index.classes == ("cat", "dog")
    assert index.labels.tolist() == [0, 1, 0, 1, -1, -1, 0]
    assert index.splits.tolist() == [TRAIN, TRAIN, VAL, TEST, 0, 0, 0]
    assert index.groups[:4] == ["p1", "p1", "p2", "box/3.png"]
    assert index.layout == "splits"
    part = index.take([3, 1])
    assert part.column("label") == ["dog", "dog"]
    assert part.column("nothing") is None
    pattern = build_index(source, labels=r"(\d)\.png")
    assert pattern.classes == ("0", "1", "2", "3", "4", "9")
    assert pattern.labels.tolist() == [0, 1, 2, 3, 4, 5, -1]


def test_a_split_file_says_who_is_used(made, table):
    names = [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(3)]
    source = open_source(str(made.folder(made.members(names))))
    text = "path,label,split\ncat/0.png,cat,train\ncat/1.png,cat,val\ndog/0.png,dog,train\n"
    path = table(text, "split.csv")
    for said in (path, path.parent):  # the file, or the run around it
        index = build_index(source, split_from=str(said))
        assert index.paths == ["cat/0.png", "cat/1.png", "dog/0.png"]
        assert index.splits.tolist() == [TRAIN, VAL, TRAIN]
        assert index.other == 3
        assert index.notes == (f"3 images are not listed in {path}: ignored.",)
    table(text.replace("cat/1.png,cat", "cat/1.png,dog"), "split.csv")
    with pytest.raises(DataError, match=r"cat/1.png is labelled 'cat' in the data and 'dog'"):
        build_index(source, split_from=str(path))
    table(text.replace("val", "extra"), "split.csv")
    with pytest.raises(DataError, match="split 'extra' for"):
        build_index(source, split_from=str(path))
    with pytest.raises(DataError, match="cannot be read"):
        build_index(source, split_from=str(path.parent / "absent.csv"))


def test_a_split_file_also_labels_what_has_no_labels(made, table):
    source = open_source(str(made.folder(made.members([f"{n}.png" for n in range(4)]))))
    path = table("path,label,split\n0.png,cat,train\n1.png,dog,train\n2.png,dog,val\n")
    index = build_index(source, split_from=str(path))
    assert [index.classes[label] for label in index.labels] == ["cat", "dog", "dog"]


def test_names_that_are_not_utf_8_are_joined(made, table):
    name = "cat/\udcff.png"
    source = open_source(str(made.folder(made.members([name, "dog/1.png"]))))
    for told in (name, r"cat/\xff.png"):  # by its bytes, and by the text that we write for it
        path = table(f"path,split\n{told},train\n1.png,train\n")
        assert len(build_index(source, split_from=str(path))) == 2


def test_classes_that_are_not_utf_8_or_end_in_a_space_come_back_from_a_split_file(made, table):
    names = ["\udcff/1.png", "cat /1.png"]
    source = open_source(str(made.folder(made.members(names))))
    text = "path,label,split\n\\xff/1.png,\\xff,train\ncat /1.png,cat ,train\n"
    index = build_index(source, split_from=str(table(text)))
    assert index.classes == (r"\xff", "cat ") and index.splits.tolist() == [TRAIN, TRAIN]
