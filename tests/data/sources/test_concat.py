"""Several sources as one: rows, names, and what is refused."""

import pickle

import pytest

from unfreeze.data.index.index import NONE, TEST, TRAIN, build_index
from unfreeze.data.index.rows import find_images
from unfreeze.data.sources.concat import unique_titles
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate.precheck import check_images
from unfreeze.data.validate.verdicts import UNUSABLE, VerdictCache
from unfreeze.errors import DataError, UsageError


@pytest.fixture
def three(made):
    """A zip without splits, a folder with them, and a list with groups; one class is in all."""
    packed = made.zip(made.members(["cat/1.png", "dog/2.png"]), "a.zip")
    folder = made.folder(made.members(["train/cat/1.png", "test/dog/3.png", "read.txt"]), "b")
    members = made.members(["x.png", "y.png"])
    made.folder(members, "c")
    table = made.root / "c" / "c.csv"
    table.write_text("path,label,group\nx.png,dog,p1\ny.png,bird,\n")
    return [str(packed), str(folder), str(table)]


def test_rows_follow_each_other_under_the_names_of_their_sources(three):
    source = open_source(three)
    parts = [open_source(place) for place in three]
    assert source.names == [
        *("a.zip/cat/1.png", "a.zip/dog/2.png"),
        *("b/read.txt", "b/test/dog/3.png", "b/train/cat/1.png"),
        *("c.csv/x.png", "c.csv/y.png"),
    ]
    alone = [part.read(row) for part in parts for row in range(len(part))]
    for same in (source, pickle.loads(pickle.dumps(source))):
        assert [same.read(row) for row in range(len(same))] == alone
    assert source.head(5, 4) == b"\x89PNG"
    assert source.sizes.tolist() == [len(data) for data in alone]
    assert source.column("label") == ["", "", "", "", "", "dog", "bird"]
    assert source.column("age") is None


def test_one_source_stays_what_it_is(three):
    assert open_source(three[:1]).names == open_source(three[0]).names
    assert open_source(three[:1]).fingerprint() == open_source(three[0]).fingerprint()


def test_the_fingerprint_is_of_all(three, made):
    before = open_source(three).fingerprint()
    assert open_source(three).fingerprint() == before
    assert open_source(three[:2]).fingerprint() != before
    made.folder({"new.png": b"x"}, "b")
    assert open_source(three).fingerprint() != before


def test_classes_are_matched_by_name_and_each_keeps_its_splits(three):
    index = build_index(open_source(three))
    assert index.classes == ("bird", "cat", "dog")
    said = {
        path: (index.classes[label], split)
        for path, label, split in zip(index.paths, index.labels, index.splits.tolist(), strict=True)
    }
    assert said == {
        "a.zip/cat/1.png": ("cat", TRAIN),
        "a.zip/dog/2.png": ("dog", TRAIN),
        "b/test/dog/3.png": ("dog", TEST),
        "b/train/cat/1.png": ("cat", TRAIN),
        "c.csv/x.png": ("dog", TRAIN),
        "c.csv/y.png": ("bird", TRAIN),
    }
    assert "a.zip has no splits: its 2 images go to train." in index.notes
    assert index.groups is not None
    assert index.groups[-2:] == ["p1", "c.csv/y.png"]
    assert index.groups[0] == "a.zip/cat/1.png"
    assert index.column("group") == ["", "", "", "", "p1", ""]
    assert (index.other, index.layout) == (1, "splits")


def test_without_splits_anywhere_none_are_made_up(three):
    draft = find_images(open_source([three[0], three[2]]))
    assert set(draft.splits.tolist()) == {NONE}


def test_a_class_that_no_train_knows_is_named_with_its_source(three, made):
    made.folder(made.members(["test/wolf/9.png"]), "b")
    with pytest.raises(DataError, match=r"'wolf' of test \(b/test/wolf/9.png\)"):
        build_index(open_source(three))


def test_a_source_without_images_is_named(three, made):
    made.folder({"a.txt": b"x"}, "empty")
    with pytest.raises(DataError, match="empty contains no images"):
        build_index(open_source([*three, str(made.root / "empty")]))


def test_places_are_told_apart_by_as_many_folders_as_it_takes():
    assert unique_titles(["x/a.zip", "y/b.zip"]) == ["a.zip", "b.zip"]
    assert unique_titles(["x/photos", "y/photos/"]) == ["x/photos", "y/photos"]
    assert unique_titles(["photos", "y/photos"]) == ["photos", "y/photos"]
    assert unique_titles(["1/x/p", "2/x/p", "2/y/p"]) == ["1/x/p", "2/x/p", "2/y/p"]


def test_what_overlaps_is_refused(three, made):
    with pytest.raises(UsageError, match="given twice"):
        open_source([three[0], three[1], three[0]])
    link = made.root / "link"
    link.symlink_to(three[1])
    with pytest.raises(UsageError, match="given twice"):
        open_source([three[1], str(link)])
    with pytest.raises(UsageError, match=r"b/train is inside .*b\."):
        open_source([f"{three[1]}/train", three[1]])


def test_what_one_run_found_of_a_source_holds_in_any_combination(three, made):
    made.folder({"train/cat/bad.png": b"<html>"}, "b")
    first = check_images(build_index(open_source(three[:2])), workers=1, refuse_above=None)
    assert [one.path for one in first.problems] == ["b/train/cat/bad.png"]
    again = check_images(build_index(open_source(three)), workers=1, refuse_above=None)
    assert (again.decoded, again.known) == (2, 5)
    alone = open_source(three[1])
    bad = VerdictCache(alone).states == UNUSABLE
    assert [alone.names[row] for row in bad.nonzero()[0]] == ["train/cat/bad.png"]


def test_the_list_beside_one_archive_holds_for_it(three, made):
    (made.root / "a.zip.left-out.csv").write_text("path,reason,detail\ncat/1.png,ugly,\n")
    found = check_images(build_index(open_source(three)), workers=1, refuse_above=None)
    assert [(one.path, one.reason) for one in found.problems] == [("a.zip/cat/1.png", "left out")]
