"""Folders that this tool wrote are no data, wherever they lie and however they are packed."""

import pytest

from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError

SETTINGS = b'store_budget = 16.0\nseed = 0\n[facts]\nunfreeze = "1"\n'
IMAGES = ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
RUN = {"config.toml": SETTINGS, "metrics.jsonl": b"{}", "model/model.json": b"{}"}
BEGUN = {"config.toml": b"seed = 0\nstore_budget = 1.0", "log.txt": b""}  # before its first epoch
QUARANTINE = {"manifest.csv": b"path,reason,detail,bytes,sha256,from\n"}
DEMO = {"demo.json": b'{"seconds": 1, "results": {}, "scores": {}}'}
OURS = {"run": RUN, "begun": BEGUN, "quarantine": QUARANTINE, "demo": DEMO}


def inside(folder, files, made):
    """The files of such a folder, and images in it."""
    images = {f"{folder}/{name}": made.encoded() for name in ("curves.png", "x/y/prototypes.png")}
    return {f"{folder}/{name}": data for name, data in files.items()} | images


def packed(made, members, pack):
    return {
        "folder": lambda: made.folder(members),
        "zip": lambda: made.zip(members),
        "tar": lambda: made.tar(members),
        "tar.gz": lambda: made.tar(members, "data.tar.gz"),
    }[pack]()


@pytest.mark.parametrize("pack", ["folder", "zip", "tar", "tar.gz"])
@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("where", ["runs/swav", "swav", "a/swav"])
def test_what_this_tool_wrote_is_passed_over_and_named(made, pack, kind, where):
    members = made.members([*IMAGES, "read.txt"]) | inside(where, OURS[kind], made)
    source = open_source(str(packed(made, members, pack)))
    index = build_index(source)
    assert (index.paths, index.classes) == (list(IMAGES), ("a", "b"))
    assert f"A folder written by unfreeze is ignored: {where}." in index.notes


@pytest.mark.parametrize("pack", ["folder", "zip"])
def test_several_are_one_sentence(made, pack):
    members = made.members(IMAGES)
    for number in range(5):
        members |= inside(f"runs/{number}", RUN, made)
    members |= inside("runs/0/folds/1", RUN, made)  # runs have runs in them
    source = open_source(str(packed(made, members, pack)))
    (note,) = [note for note in build_index(source).notes if "unfreeze" in note]
    assert note.startswith("5 folders written by unfreeze are ignored: runs/0, runs/1,")


def test_with_labels_from_elsewhere_they_are_passed_over_too(made):
    root = made.folder(made.members(IMAGES) | inside("runs/x", RUN, made))
    (root / "labels.csv").write_text("path,label\n" + "".join(f"{n},{n[0]}\n" for n in IMAGES))
    for data, labels in ((root, str(root / "labels.csv")), (root / "labels.csv", None)):
        assert sorted(build_index(open_source(str(data)), labels=labels).paths) == list(IMAGES)


def test_a_run_that_is_written_does_not_change_the_data(made):
    root = made.folder(made.members(IMAGES))
    before = open_source(str(root)).fingerprint()
    made.folder(inside("runs/x", RUN, made))
    assert open_source(str(root)).fingerprint() == before


@pytest.mark.parametrize("pack", ["folder", "zip"])
def test_a_run_itself_is_no_data(made, pack):
    members = RUN | {"curves.png": made.encoded()}
    with pytest.raises(DataError, match="is a run folder, not a dataset"):
        open_source(str(packed(made, members, pack)))


def test_what_lies_in_a_quarantine_can_be_looked_at(made):
    root = made.folder(QUARANTINE | made.members(["a/1.png"]))
    assert build_index(open_source(str(root))).paths == ["a/1.png"]


@pytest.mark.parametrize(
    "files",
    [
        {"config.toml": SETTINGS},  # somebody's settings beside the images
        {"config.toml": b"title = 'x'\n", "log.txt": b""},
        {"manifest.csv": b"path,label\n1.png,a\n"},
        {"demo.json": b"{}"},
        {"checkpoints/1.png": b"x", "model/1.png": b"x"},
    ],
)
def test_other_folders_with_such_files_are_data(made, files):
    members = made.members(IMAGES) | {f"a/{name}": data for name, data in files.items()}
    for pack in ("folder", "zip"):
        source = open_source(str(packed(made, members, pack)))
        assert source.outputs == () and set(IMAGES) <= set(build_index(source).paths)


def test_where_nothing_else_is_left_it_is_said(made):
    root = made.folder(inside("runs/x", RUN, made) | {"read.txt": b"text"})
    with pytest.raises(
        DataError, match=r"no images: 1 other files, and runs/x \(written by unfreeze\)"
    ):
        build_index(open_source(str(root)))
