import numpy as np
import pytest

from unfreeze.data.loading.loader import class_balanced_order

LABELS = np.repeat([0, 1, 2], [60, 9, 4])


@pytest.mark.parametrize("epoch", [0, 1, 2, 7])
def test_every_class_has_the_same_number_to_one_image(epoch):
    order = class_balanced_order(LABELS, 0)(epoch)
    assert len(order) == len(LABELS)
    counts = np.bincount(LABELS[order], minlength=3)
    assert counts.max() - counts.min() <= 1
    seen = np.bincount(order, minlength=len(LABELS))
    for one in range(3):  # as equally often as can be
        own = seen[one == LABELS]
        assert own.max() - own.min() <= 1


def test_a_large_class_is_seen_whole_over_epochs_and_extras_move_on():
    order = class_balanced_order(LABELS, 0)
    drawn = np.concatenate([order(epoch) for epoch in range(12)])
    assert set(drawn) == set(range(len(LABELS)))
    counts = np.bincount(LABELS[drawn], minlength=3)
    assert counts.max() == counts.min()  # 12 epochs are four rounds of three classes


def test_it_follows_from_seed_and_epoch_and_is_shuffled():
    assert np.array_equal(class_balanced_order(LABELS, 5)(3), class_balanced_order(LABELS, 5)(3))
    assert not np.array_equal(
        class_balanced_order(LABELS, 5)(3), class_balanced_order(LABELS, 6)(3)
    )
    assert not np.array_equal(
        class_balanced_order(LABELS, 5)(3), class_balanced_order(LABELS, 5)(4)
    )
    changes = np.count_nonzero(np.diff(LABELS[class_balanced_order(LABELS, 0)(0)]))
    assert changes > 30  # classes alternate: sorted there would be two changes


def test_classes_without_a_image_take_no_share():
    labels = np.array([0, 0, 0, 2])
    order = class_balanced_order(labels, 0)(0)
    assert sorted(labels[order]) == [0, 0, 2, 2]
