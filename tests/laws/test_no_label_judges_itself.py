"""An image's own label, and those of its copies, never train the model that scores the image."""

import numpy as np
import pytest
import torch

from unfreeze.evaluation import logistic_regression
from unfreeze.evaluation.logistic_regression import out_of_fold_probabilities

IMAGES, CLASSES, GROUPS = 24, 3, np.arange(24) // 2  # pairs of copies
LABELS = torch.arange(IMAGES) % CLASSES
FEATURES = torch.randn(IMAGES, 5, generator=torch.Generator().manual_seed(0))
FOLDS = [
    (np.flatnonzero(number != GROUPS % 4), np.flatnonzero(number == GROUPS % 4))
    for number in range(4)
]


def with_and_without(positions, folds=FOLDS, groups=GROUPS):
    """Probabilities [N, K] with the labels as they are, and with those of `positions` changed."""
    changed = LABELS.clone()
    changed[positions] = (changed[positions] + 1) % CLASSES
    return [
        out_of_fold_probabilities(FEATURES, labels, CLASSES, folds, groups)
        for labels in (LABELS, changed)
    ]


@pytest.mark.parametrize("image", [0, 7, 23])
def test_its_own_label_and_its_copies_have_no_part(image):
    copies = np.flatnonzero(GROUPS[image] == GROUPS)
    before, after = with_and_without(copies)
    assert np.array_equal(before[copies], after[copies])  # to the bit
    elsewhere = np.flatnonzero(GROUPS[image] % 4 != GROUPS % 4)
    assert (before[elsewhere] != after[elsewhere]).any(axis=1).all()  # the label does train others


def test_the_law_sees_a_leak(monkeypatch):
    """Without the check, folds that train on what they judge do not pass the test above."""
    leaky = [(np.arange(IMAGES), test) for _, test in FOLDS]
    with pytest.raises(ValueError, match="both sides"):
        with_and_without([0], leaky)
    monkeypatch.setattr(logistic_regression.np, "isin", lambda *_: np.zeros(1, bool))
    before, after = with_and_without([0], leaky)
    assert not np.array_equal(before[0], after[0])


def test_a_copy_on_the_other_side_is_refused():
    training, test = FOLDS[0]
    swapped = [(np.append(training, test[0]), test[1:]), *FOLDS[1:]]
    swapped[1] = (FOLDS[1][0], np.append(FOLDS[1][1], test[0]))
    with pytest.raises(ValueError, match="both sides"):
        with_and_without([0], swapped)


def test_each_image_is_judged_once():
    for folds in (FOLDS[:-1], [*FOLDS, FOLDS[0]]):
        with pytest.raises(ValueError, match="held out once"):
            with_and_without([0], folds)


def test_probabilities_are_those_of_scikit_learn():
    """The same strength on the same scaled features, fold by fold."""
    from sklearn.linear_model import LogisticRegression

    ours = out_of_fold_probabilities(
        FEATURES, LABELS, CLASSES, FOLDS, GROUPS, scaling="standardised", strength=10.0
    )
    option = next(o for o in logistic_regression.SCALINGS if o.name == "standardised")
    for training, test in FOLDS:
        scaled = logistic_regression.scale_features(FEATURES[training], option)
        model = LogisticRegression(C=10.0, tol=1e-10, max_iter=10_000)
        model.fit(scaled.served.numpy(), LABELS[training].numpy())
        queries = (FEATURES[test].double() - scaled.mean) / scaled.scale
        assert np.abs(model.predict_proba(queries.numpy()) - ours[test]).max() < 1e-4
