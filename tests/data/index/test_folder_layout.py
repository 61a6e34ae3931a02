import pytest

from unfreeze.data.index.folder_layout import NONE, TEST, TRAIN, VAL, FolderRole, read_layout


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
        assert found.places[folder] == (None if place is None else FolderRole(*place)), folder


def test_folders_that_share_a_beginning_are_told_apart():
    found = read_layout({"w/cat": 2, "w/cats": 2, "w/category": 1})
    assert [found.places[name].label for name in found.places] == ["cat", "cats", "category"]


WORDS = {
    TRAIN: ["train", "training", "TRAIN", "Training", "train_set", "training-set"],
    VAL: ["val", "valid", "validation", "dev", "eval", "Validation", "DEV", "val_set"],
    TEST: ["test", "testing", "holdout", "hold-out", "Testing", "TEST", "Hold_Out"],
}
PAIRS = [
    (train, other, split)
    for split in (VAL, TEST)
    for train in WORDS[TRAIN]
    for other in WORDS[split]
]


@pytest.mark.parametrize("wrapper", ["", "wrap/", "data/set/"])
def test_every_word_for_a_split_with_every_other_in_any_case(wrapper):
    for train, other, split in PAIRS:
        names = [f"{wrapper}{name}/{label}" for name in (train, other) for label in ("a", "b")]
        found = read_layout(dict.fromkeys(names, 5))
        assert found.kind == "splits", names
        assert [*found.places.values()] == [
            *(
                FolderRole(TRAIN, "a"),
                FolderRole(TRAIN, "b"),
                FolderRole(split, "a"),
                FolderRole(split, "b"),
            )
        ], names
        assert found.doubt is None


def test_eval_is_test_beside_another_val():
    found = read_layout(
        {f"{name}/{label}": 3 for name in ("train", "dev", "eval") for label in "ab"}
    )
    assert [place.split for place in found.places.values()] == [TRAIN, TRAIN, VAL, VAL, TEST, TEST]


@pytest.mark.parametrize(
    ("folders", "places"),
    [
        # as Kaggle packs them
        (
            {"training_set/training_set/cats": 4, "training_set/training_set/dogs": 4}
            | {"test_set/test_set/cats": 2, "test_set/test_set/dogs": 2},
            {
                "training_set/training_set/cats": (TRAIN, "cats"),
                "test_set/test_set/dogs": (TEST, "dogs"),
            },
        ),
        (
            {
                f"seg_{s}/seg_{s}/{label}": 3
                for s in ("train", "test")
                for label in ("forest", "sea")
            }
            | {"seg_pred/seg_pred": 9},
            {"seg_train/seg_train/sea": (TRAIN, "sea"), "seg_pred/seg_pred": None},
        ),
        (
            {f"x/{s}/{s}/n{k}": 3 for s in ("training", "validation") for k in range(3)},
            {"x/training/training/n0": (TRAIN, "n0"), "x/validation/validation/n2": (VAL, "n2")},
        ),
        (
            {"train-images": 5, "test-images": 5},
            {"train-images": (TRAIN, None), "test-images": (TEST, None)},
        ),
        (
            {"train/a": 5, "train/b": 5, "test1": 9},
            {"train/b": (TRAIN, "b"), "test1": (TEST, None)},
        ),
        (
            {f"{s}2017/{label}": 3 for s in ("train", "val") for label in "ab"},
            {"train2017/a": (TRAIN, "a"), "val2017/b": (VAL, "b")},
        ),
        (
            {f"{s}/images/{label}": 3 for s in ("train", "test") for label in "ab"},
            {"train/images/a": (TRAIN, "a"), "test/images/b": (TEST, "b")},
        ),
        ({"train/a": 3, "train/b": 3, "test/images": 4}, {"test/images": (TEST, None)}),
        # a wrapper of another name, in every split
        (
            {f"{s}/plants/{label}/x": 3 for s in ("train", "test") for label in "ab"},
            {"train/plants/a/x": (TRAIN, "a"), "test/plants/b/x": (TEST, "b")},
        ),
        # images without labels beside train
        (
            {"train/a": 3, "train/b": 3, "unlabeled": 9},
            {"train/b": (TRAIN, "b"), "unlabeled": None},
        ),
        # splits inside the classes
        (
            {f"{label}/{s}": 3 for label in ("cat", "dog") for s in ("train", "valid", "test")},
            {"cat/train": (TRAIN, "cat"), "dog/valid": (VAL, "dog"), "dog/test": (TEST, "dog")},
        ),
    ],
)
def test_splits_in_the_ways_that_datasets_are_packed(folders, places):
    found = read_layout(folders)
    assert found.kind == "splits" and found.doubt is None
    for folder, place in places.items():
        assert found.places[folder] == (None if place is None else FolderRole(*place)), folder


@pytest.mark.parametrize(
    "folders",
    [
        {"train_a": 5, "train_b": 5, "test_a": 5, "test_b": 5},  # the class is in the name
        {
            "train_station/day": 5,
            "train_station/night": 5,
            "test_tube/day": 5,
            "test_tube/night": 5,
        },
        {f"fold_{k}/{label}": 5 for k in range(3) for label in ("cat", "dog")},
        {f"w/site{k}/{label}": 5 for k in "AB" for label in range(10)},
        {f"{name}/{s}/{label}": 5 for name in "xy" for s in ("train", "test") for label in "ab"},
    ],
)
def test_folders_that_cannot_be_read_for_certain_are_refused(folders):
    doubt = read_layout(folders).doubt
    assert doubt.certain and doubt.sentence.endswith(".") and doubt.next_step


@pytest.mark.parametrize(
    "folders",
    [
        {f"{name}/{label}": 5 for name in ("oslo", "rome") for label in ("cat", "dog")},
        {f"train/{name}/{label}": 5 for name in ("oslo", "rome") for label in ("cat", "dog")},
        {"train": 5, "test": 5, "car": 5},
        {"train/a": 3, "train/b": 3, "misc": 9},
    ],
)
def test_what_is_only_doubtful_is_read_and_said(folders):
    found = read_layout(folders)
    assert {place.label for place in found.places.values()} > {"oslo"} or found.kind == "classes"
    assert found.doubt is not None and not found.doubt.certain


@pytest.mark.parametrize(
    "folders",
    [
        {"cat": 5, "dog": 5},
        {"cat/1": 5, "cat/2": 5, "dog/7": 5},
        {f"{label}/session{k}": 5 for label in ("cat", "dog") for k in range(3)},
        {"test_positive": 5, "test_negative": 5},  # a test's outcome
        {"valid": 5, "invalid": 5},
        {"train_station": 5, "bus_station": 5},
    ],
)
def test_classes_are_not_doubted_without_need(folders):
    found = read_layout(folders)
    assert (found.kind, found.doubt) == ("classes", None)
