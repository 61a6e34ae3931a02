"""WebDataset shards: tar files in which a label stands beside each image."""

import json
import pickle

import pytest

from unfreeze.data.index.index import TEST, TRAIN, build_index
from unfreeze.data.sources.open import open_source
from unfreeze.data.sources.tar import expand_braces
from unfreeze.data.validate.precheck import check_images
from unfreeze.errors import DataError


@pytest.fixture
def shard(made):
    """`shard(name, {"000": ".cls text"})`: a tar with `000.png` and what stands beside it."""

    def make(name, samples, ending=".cls"):
        members = {}
        for place, (key, text) in enumerate(samples.items()):
            members[f"{key}.png"] = made.encoded(made.noise(seed=place))
            if text is not None:
                members[key + ending] = text.encode()
        path = made.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return made.tar(members, name)

    return make


def test_a_folder_of_shards(made, shard):
    one = shard("set/train-000.tar", {"a": "0", "b": "1"})
    shard("set/train-001.tar", {"a": "1", "c": None})
    shard("set/test-000.tar", {"d": "1\n"})
    source = open_source(str(one.parent))
    assert source.kind == "shards"
    assert source.names == [
        "test-000/d.png",
        "train-000/a.png",
        "train-000/b.png",
        "train-001/a.png",
        "train-001/c.png",
    ]
    index = build_index(source)
    assert [index.classes[label] if label >= 0 else "" for label in index.labels] == [
        "1",
        "0",
        "1",
        "1",
        "",
    ]
    assert index.splits.tolist() == [TEST] + [TRAIN] * 4
    assert index.other == 4  # what stands beside
    image = made.encoded(made.noise(seed=1))
    assert source.read(2) == image
    assert pickle.loads(pickle.dumps(source)).read(2) == image
    assert not check_images(index, workers=1).problems


def test_a_pattern_with_braces_and_one_shard_alone_are_the_same_rows(made, shard):
    for number in range(3):
        shard(f"x-{number:02}.tar", {f"k{number}": "cat", f"l{number}": "dog"})
    source = open_source(str(made.root / "x-{00..02}.tar"))
    assert source.labels == ["cat", "dog"] * 3
    alone = open_source(str(made.root / "x-01.tar"))
    assert alone.names == ["k1.png", "l1.png"] and alone.labels == ["cat", "dog"]
    assert alone.read(1) == source.read(3)
    several = build_index(open_source([str(made.root / f"x-{n:02}.tar") for n in range(3)]))
    assert several.classes == ("cat", "dog") and len(several) == 6


def test_the_index_names_the_shard_that_is_missing(made, shard):
    shard("x-0.tar", {"a": "1"})
    with pytest.raises(DataError, match=r"'.*x-1\.tar' \(from .*x-\{0\.\.1\}\.tar\)"):
        open_source(str(made.root / "x-{0..1}.tar"))
    made.zip({"a.png": b""}, "x-1.zip")
    with pytest.raises(DataError, match=r"other than \.tar"):
        open_source(str(made.root / "x-{0.tar,1.zip}"))


def test_patterns_are_written_out():
    assert expand_braces("a.tar") == ["a.tar"]
    assert expand_braces("a-{8..11}.tar") == [f"a-{n}.tar" for n in (8, 9, 10, 11)]
    assert expand_braces("{train,val}-{0..1}") == ["train-0", "train-1", "val-0", "val-1"]
    assert expand_braces("odd{.tar") == ["odd{.tar"]
    with pytest.raises(DataError, match="not a range of numbers"):
        expand_braces("{a..f}.tar")
    with pytest.raises(DataError, match="more than"):
        expand_braces("{0..99999999999}.tar")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ({"label": "cat", "width": 3}, "cat"),
        ({"cls": 7}, "7"),
        ({"class": 7.0}, "7"),
        ({"label": ["cat", "dog"]}, "cat;dog"),
        ({"caption": "a cat"}, None),
        ({"label": {"id": 3}}, None),
        ("wolf", "wolf"),
    ],
)
def test_labels_in_json(shard, text, label, made):
    shard("set/0.tar", {"a": json.dumps(text)}, ".json")
    source = open_source(str(made.root / "set"))
    assert source.labels == (None if label is None else [label])


def test_a_broken_json_says_nothing_and_cls_comes_first(made):
    image = made.encoded()
    members = {"a.png": image, "a.json": b"{", "b.png": image, "b.json": b'"x"', "b.cls": b"y"}
    made.tar(members, "0.tar")
    assert open_source(str(made.root / "0.tar")).labels == ["", "y"]


def test_texts_are_classes_only_where_they_come_again(made, shard):
    shard("set/0.tar", {key: "cat" if key < "c" else "dog" for key in "abcd"}, ".txt")
    assert open_source(str(made.root / "set")).labels == ["cat", "cat", "dog", "dog"]
    shard("other/0.tar", {key: f"an image of {key}" for key in "abcd"}, ".txt")
    source = open_source(str(made.root / "other"))
    assert source.labels is None
    assert any("4 different texts: they are captions" in note for note in source.notes)


def test_several_images_of_a_sample_share_its_label(made):
    image = made.encoded()
    members = {"s/1.left.png": image, "s/1.right.png": image, "s/1.cls": b"x"}
    made.tar(members, "0.tar")
    source = open_source(str(made.root / "0.tar"))
    assert source.names == ["s/1.left.png", "s/1.right.png"] and source.labels == ["x", "x"]


def test_a_plain_tar_stays_one(made):
    members = made.members(["cat/1.png", "dog/2.png"]) | {"cat/1.json": b'{"label": "z"}'}
    made.tar(members, "plain.tar")
    assert build_index(open_source(str(made.root / "plain.tar"))).classes == ("cat", "dog")


def test_shards_beside_images_are_archives_inside(made, shard):
    shard("mixed/0.tar", {"a": "1"})
    (made.root / "mixed" / "b.png").write_bytes(made.encoded())
    index = build_index(open_source(str(made.root / "mixed")))
    assert index.paths == ["b.png"] and any("not opened" in note for note in index.notes)


def test_a_shard_that_is_cut_or_leaves_its_place_is_refused(made, shard):
    path = shard("set/0.tar", {"a": "1", "b": "2"})
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    with pytest.raises(DataError, match="truncated or corrupt"):
        open_source(str(path.parent))
    made.tar({"../a.png": b"x"}, "set/0.tar")
    with pytest.raises(DataError, match="points outside"):
        open_source(str(path.parent))


def test_a_shard_that_shrinks_later_is_named(made, shard):
    path = shard("set/0.tar", {"a": "1", "b": "2"})
    source = open_source(str(path.parent))
    path.write_bytes(path.read_bytes()[:600])
    found = check_images(build_index(source), workers=1, refuse_above=None)
    assert {one.reason for one in found.problems} == {"truncated"}
    path.unlink()
    assert source.head(0, 4) == b""


def test_thousands_of_shards_hold_no_file_open(made, shard):
    path = shard("set/0.tar", {"a": "1"})
    data = path.read_bytes()
    for number in range(1, 1100):
        (path.parent / f"{number}.tar").write_bytes(data)
    source = open_source(str(path.parent))
    assert len(source) == 1100
    assert all(source.read(row) for row in range(0, 1100, 100))
