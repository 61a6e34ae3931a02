import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.classification import SplitConformalClassifier
from scipy.stats import betabinom
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from unfreeze.evaluation.conformal import (
    CLASS_FACTOR,
    conformal_threshold,
    images_needed,
    prediction_sets,
    risk_coverage,
    set_thresholds,
)

LEVEL = 0.9
HELD = 200


@pytest.fixture(scope="module")
def digits():
    """A classifier on few digits, and the images that it has not seen."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order] / 16, labels[order].astype(np.int64)
    model = LogisticRegression(C=0.05, max_iter=500).fit(images[:150], labels[:150])
    return model, images[150:], labels[150:]


def test_the_number_of_images_needed():
    assert [images_needed(level) for level in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    for level in (0.5, 0.8, 0.9, 0.95, 0.99):
        enough = images_needed(level)
        assert conformal_threshold(np.arange(float(enough)), level) == enough - 1
        with pytest.raises(ValueError, match="too few"):
            conformal_threshold(np.arange(float(enough - 1)), level)


@given(st.lists(st.floats(0, 1), min_size=20, max_size=60), st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_the_threshold_is_the_smallest_score_that_covers_enough(scores, level):
    needed = math.ceil(round((len(scores) + 1) * level, 9))
    slow = min(t for t in scores if sum(s <= t for s in scores) >= needed)
    assert conformal_threshold(np.array(scores), level) == slow


def test_sets_are_those_of_mapie(digits):
    model, images, labels = digits
    reference = SplitConformalClassifier(model, confidence_level=LEVEL, conformity_score="lac")
    reference.conformalize(images[:HELD], labels[:HELD])
    _, theirs = reference.predict_set(images[HELD:])
    held, new = model.predict_proba(images[:HELD]), model.predict_proba(images[HELD:])
    thresholds, by_class = set_thresholds(held, labels[:HELD], LEVEL)
    assert not by_class
    # MAPIE adds the most likely label to an empty set
    ours = prediction_sets(new, thresholds)
    some = ours.any(axis=1)
    assert some.mean() > 0.9
    assert np.array_equal(ours[some], theirs[some, :, 0])


def coverages(digits, level):
    """Covered images of 50 random splits into images of the thresholds and new ones."""
    model, images, labels = digits
    probabilities = model.predict_proba(images)
    covered = []
    for seed in range(50):
        order = np.random.default_rng(seed).permutation(len(labels))
        held, new = order[:HELD], order[HELD:]
        thresholds, _ = set_thresholds(probabilities[held], labels[held], level)
        sets = prediction_sets(probabilities[new], thresholds)
        covered.append(int(sets[np.arange(len(new)), labels[new]].sum()))
    return np.array(covered), len(new)


def test_coverage_is_inside_the_binomial_band_over_50_splits(digits):
    covered, count = coverages(digits, LEVEL)
    # the covered number of new images is beta-binomial (Vovk 2012; Angelopoulos and Bates, 3.2)
    rank = math.ceil((HELD + 1) * LEVEL)
    law = betabinom(count, rank, HELD + 1 - rank)
    share = 0.001 / len(covered)  # of each tail: one split in a thousand times fifty
    assert law.ppf(share) <= covered.min() and covered.max() <= law.ppf(1 - share)
    assert covered.mean() / count == pytest.approx(law.mean() / count, abs=0.01)
    other, _ = coverages(digits, LEVEL - 0.05)  # another promise is told from it
    assert abs(other.mean() / count - law.mean() / count) > 0.02


def test_enough_images_of_each_class_give_each_its_own_threshold():
    rng = np.random.default_rng(0)
    enough = CLASS_FACTOR * images_needed(LEVEL)
    labels = np.repeat([0, 1], [enough, 500])
    logits = rng.normal(size=(len(labels), 2))
    logits[np.arange(len(labels)), labels] += np.where(labels == 0, 0.0, 3.0)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    thresholds, by_class = set_thresholds(probabilities, labels, LEVEL)
    assert by_class and thresholds[0] > thresholds[1]
    for label in (0, 1):
        own = 1 - probabilities[labels == label, label]
        assert thresholds[label] == conformal_threshold(own, LEVEL)
    thresholds, by_class = set_thresholds(probabilities[1:], labels[1:], LEVEL)
    assert not by_class and thresholds[0] == thresholds[1]


def test_risk_by_coverage_equals_a_slow_loop():
    rng = np.random.default_rng(1)
    confidence, right = rng.random(40), rng.random(40) < 0.7
    coverage, risk = risk_coverage(confidence, right)
    best_first = sorted(range(40), key=lambda i: -confidence[i])
    for n in range(1, 41):
        answered = best_first[:n]
        assert coverage[n - 1] == n / 40
        assert risk[n - 1] == pytest.approx(sum(not right[i] for i in answered) / n)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1),
       st.randoms())  # fmt: skip
def test_the_order_of_equal_confidences_changes_no_risk(pairs, random):
    other = random.sample(pairs, len(pairs))
    curves = [
        risk_coverage(np.array([c for c, _ in some]), np.array([r for _, r in some]))
        for some in (pairs, other)
    ]
    assert np.allclose(curves[0][1], curves[1][1])
    assert curves[0][1][-1] == pytest.approx(np.mean([not r for _, r in pairs]))
