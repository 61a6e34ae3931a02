import numpy as np
import pytest

from unfreeze.data.index.index import build_index
from unfreeze.data.sources.builtin import ArraySource
from unfreeze.errors import DataError
from unfreeze.transfer.train_val_split import (
    SplitOptions,
    cross_validation_folds,
    groups_by,
    labelled_images,
    split_train_val,
)


def index(labels, splits=None):
    pixels = np.zeros((len(labels), 4, 4, 3), np.uint8)
    return build_index(ArraySource("toy", pixels, list(labels), splits or [""] * len(labels)))


def test_without_a_val_a_share_of_each_class_is_held_out():
    found = labelled_images(index("ab" * 20))
    parts = split_train_val(found, np.arange(40), SplitOptions(seed=3, val=0.25))
    assert len(parts.val) == 10 and np.bincount(found.labels[parts.val]).tolist() == [5, 5]
    assert sorted([*parts.train, *parts.val]) == list(range(40)) and "held out" in parts.reason
    again = split_train_val(found, np.arange(40), SplitOptions(seed=3, val=0.25))
    other = split_train_val(found, np.arange(40), SplitOptions(seed=4, val=0.25))
    assert np.array_equal(parts.val, again.val) and not np.array_equal(parts.val, other.val)
    assert {row.split for row in parts.rows()} == {"train", "val"} and len(parts.rows()) == 40


def test_a_given_val_is_left_whole_and_test_is_not_there():
    labels = "ab" * 12
    found = labelled_images(index(labels, ["train"] * 16 + ["val"] * 4 + ["test"] * 4))
    assert len(found) == 20
    parts = split_train_val(found, np.arange(20), SplitOptions(seed=0, val=0.5, labels_per_class=2))
    assert (len(parts.train), len(parts.val), parts.reason) == (4, 4, "the dataset's own val split")


def test_unusable_and_unlabelled_images_are_in_no_portion():
    found = labelled_images(index(["a", "b", ""] * 8))
    assert len(found) == 16
    parts = split_train_val(found, np.arange(2, 16), SplitOptions(seed=0, val=0.2))
    assert 0 not in {*parts.train, *parts.val} and len(parts.train) + len(parts.val) == 14


def test_few_labels_keep_everything_for_training():
    found = labelled_images(index("ab" * 4))
    for wanted in (SplitOptions(seed=0, val=0.2), SplitOptions(seed=0, val=0.0)):
        parts = split_train_val(found, np.arange(8), wanted)
        assert len(parts.train) == 8 and not len(parts.val) and "last weights" in parts.reason


def test_a_class_without_a_usable_image_is_named():
    found = labelled_images(index("aaab"))
    with pytest.raises(DataError, match="'b' has no usable training image"):
        split_train_val(found, np.arange(3), SplitOptions(seed=0, val=0.2))


def test_groups_come_from_a_pattern_and_the_rest_stand_alone():
    found = labelled_images(index("abab"))
    assert groups_by(found, None) is None
    # names are split/label/row.png
    assert groups_by(found, r"/([ab])/") == ["a", "b", "a", "b"]
    assert groups_by(found, r"/(a)/")[1] == found.paths[1]


def test_near_duplicates_stay_on_one_side_of_a_cut_and_of_every_fold():
    found = labelled_images(index("ab" * 30))
    alike = [[0, 2, 4], [1, 3], [10, 11]]
    for seed in range(5):
        parts = split_train_val(found, np.arange(60), SplitOptions(seed=seed, val=0.3), alike)
        assert all(len({place in parts.val for place in group}) == 1 for group in alike)
        assert "3 groups of near-duplicates stay on one side" in parts.reason
        for fold in cross_validation_folds(parts, SplitOptions(seed=seed, val=0.3), 4):
            assert all(len({place in fold.val for place in group}) == 1 for group in alike)
    free = split_train_val(found, np.arange(60), SplitOptions(seed=0, val=0.3))
    assert "near-duplicates" not in free.reason
    # what is not trained on binds nothing
    few = split_train_val(found, np.arange(12, 60), SplitOptions(seed=0, val=0.3), alike)
    assert "near-duplicates" not in few.reason


def test_a_val_that_is_given_is_not_moved_for_near_duplicates():
    found = labelled_images(index("ab" * 12, ["train"] * 16 + ["val"] * 8))
    parts = split_train_val(found, np.arange(24), SplitOptions(seed=0, val=0.2), [[0, 16]])
    assert parts.val.tolist() == list(range(16, 24)) and 0 in parts.train
