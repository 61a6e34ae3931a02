import pytest

from unfreeze.data.layout import NONE, TEST, TRAIN, VAL, Place, read_layout


@pytest.mark.parametrize(
    ("folders", "kind", "places"),
    [
        ({"": 5}, "flat", {"": (NONE, None)}),
        ({"": 5, "thumbs": 3}, "flat", {"": (NONE, None), "thumbs": (NONE, None)}),
        ({"cat": 5, "dog": 5}, "classes", {"cat": (NONE, "cat"), "dog": (NONE, "dog")}),
        ({"cat": 5}, "classes", {"cat": (NONE, "cat")}),
        ({"cat/young": 2, "cat": 1, "dog/x/y": 1}, "classes", {"dog/x/y": (NONE, "dog")}),
        ({"cat/young": 2, "cat": 3}, "classes", {"cat/young": (NONE, "cat")}),
        ({"wrap/cat": 5, "wrap/dog": 5}, "classes", {"wrap/cat": (NONE, "cat")}),
        ({"a/b/cat": 5, "a/b/dog": 5}, "classes", {"a/b/dog": (NONE, "dog")}),
        ({"wrap/cat": 5}, "classes", {"wrap/cat": (NONE, "cat")}),
        ({"": 1, "cat": 5, "dog": 5}, "classes", {"": None, "dog": (NONE, "dog")}),
        ({"train/cat": 5, "test/cat": 5}, "splits", {"train/cat": (TRAIN, "cat")}),
        ({"w/Train/cat": 5, "w/valid/cat/x": 5}, "splits", {"w/valid/cat/x": (VAL, "cat")}),
        ({"train/cat": 5, "validation/cat": 1}, "splits", {"validation/cat": (VAL, "cat")}),
        ({"test/cat": 5, "test/dog": 5}, "splits", {"test/dog": (TEST, "dog")}),
        ({"train": 5, "test": 5}, "splits", {"train": (TRAIN, None), "test": (TEST, None)}),
        ({"train/cat": 5, "test": 5}, "splits", {"test": (TEST, None)}),
        ({"train/cat": 5, "val/cat": 5, "extra/x": 9}, "splits", {"extra/x": None}),
        ({"train/cat": 5, "train": 1}, "splits", {"train": None, "train/cat": (TRAIN, "cat")}),
        ({"train": 5, "plane": 5, "car": 5}, "classes", {"train": (NONE, "train")}),
        ({"train": 5, "test": 5, "car": 5}, "classes", {"train": (NONE, "train")}),
    ],
)
def test_what_folders_mean(folders, kind, places):
    found = read_layout(folders)
    assert found.kind == kind
    assert set(found.places) == set(folders)
    for folder, place in places.items():
        assert found.places[folder] == (None if place is None else Place(*place)), folder


def test_folders_that_share_a_beginning_are_told_apart():
    found = read_layout({"w/cat": 2, "w/cats": 2, "w/category": 1})
    assert [found.places[name].label for name in found.places] == ["cat", "cats", "category"]
