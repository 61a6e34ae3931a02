"""Metrics of several labels beside scikit-learn, and thresholds beside a search of all."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from unfreeze.tasks.multilabel.metrics import (
    ENOUGH,
    LabelCounts,
    average_precision,
    best_threshold,
    choose_thresholds,
    class_rows,
    mean_of_defined,
)


def drawn(seed, images=60, classes=5, levels=None):
    draw = np.random.default_rng(seed)
    targets = (draw.random((images, classes)) < draw.uniform(0.05, 0.7, classes)).astype(float)
    scores = targets + draw.normal(0, 1.5, targets.shape)
    if levels:  # few different scores: ties
        scores = np.round(scores * levels) / levels
    return scores, targets


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_scikit_learn(seed, levels):
    scores, targets = drawn(seed, levels=levels)
    expected = [average_precision_score(targets[:, c], scores[:, c]) for c in range(5)]
    assert average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)


def test_a_class_without_positives_has_no_value_and_is_left_out_of_the_means():
    scores, targets = drawn(0)
    targets[:, 2] = 0
    values = average_precision(scores, targets)
    assert np.isnan(values[2]) and np.isfinite(np.delete(values, 2)).all()
    assert mean_of_defined(values) == pytest.approx(np.delete(values, 2).mean())
    f1 = LabelCounts.of(scores, targets, np.full(5, 0.5)).f1
    assert np.isnan(f1[2]) and mean_of_defined(f1) == pytest.approx(np.delete(f1, 2).mean())
    assert np.isnan(mean_of_defined(np.array([np.nan])))


@pytest.mark.parametrize("seed", range(6))
def test_precision_recall_and_f1_are_those_of_scikit_learn(seed):
    scores, targets = drawn(seed)
    limits = np.random.default_rng(seed).uniform(0, 1.5, 5)
    counts, predicted = LabelCounts.of(scores, targets, limits), scores >= limits
    for ours, theirs in (
        (counts.f1, f1_score),
        (counts.precision, precision_score),
        (counts.recall, recall_score),
    ):
        expected = theirs(targets, predicted, average=None, zero_division=0)
        assert np.nan_to_num(ours) == pytest.approx(expected)
    assert counts.micro_f1 == pytest.approx(f1_score(targets, predicted, average="micro"))
    macro = f1_score(targets, predicted, average="macro")
    assert mean_of_defined(counts.f1) == pytest.approx(macro)


def test_unknown_labels_count_nowhere():
    scores, targets = drawn(3)
    hidden = np.random.default_rng(9).random(targets.shape) < 0.3
    partly = np.where(hidden, np.nan, targets)
    counts = LabelCounts.of(scores, partly, np.full(5, 0.5))
    for c in range(5):
        seen = ~hidden[:, c]
        truth, given_scores = targets[seen, c], scores[seen, c]
        expected = average_precision_score(truth, given_scores)
        assert average_precision(scores, partly)[c] == pytest.approx(expected)
        assert counts.f1[c] == pytest.approx(f1_score(truth, given_scores >= 0.5))


@pytest.mark.parametrize("seed", range(40))
def test_no_other_threshold_has_a_better_f1(seed):
    draw = np.random.default_rng(seed)
    count = draw.integers(1, 24)
    scores = draw.integers(0, 7, count) / 6  # also 0 and 1, and ties
    truth = (draw.random(count) < 0.5).astype(float)
    truth[0] = 1
    chosen = best_threshold(scores, truth)
    reached = f1_score(truth, scores >= chosen)
    best = max(f1_score(truth, scores >= limit) for limit in np.linspace(-0.01, 1.0, 203))
    assert 0 <= chosen <= 1 and reached == pytest.approx(best)


def test_a_threshold_lies_half_way_between_two_images():
    assert best_threshold(np.array([0.9, 0.2]), np.array([1.0, 0.0])) == pytest.approx(0.55)


def test_probabilities_that_are_neighbours_are_told_apart():
    low = 0.5
    high = np.nextafter(low, 1)
    assert best_threshold(np.array([high, low]), np.array([1.0, 0.0])) == high


def test_a_rare_class_gets_the_shared_threshold_and_too_few_labels_give_a_half():
    draw = np.random.default_rng(0)
    targets = np.zeros((200, 3))
    targets[:100, 0], targets[: ENOUGH - 1, 1], targets[:ENOUGH, 2] = 1, 1, 1
    scores = np.clip(0.2 + 0.3 * targets + draw.normal(0, 0.1, targets.shape), 0, 1)
    found = choose_thresholds(scores, targets)
    assert [threshold.origin for threshold in found] == ["own", "shared", "own"]
    assert found[0].value == best_threshold(scores[:, 0], targets[:, 0])
    assert found[1].value == best_threshold(scores.ravel(), targets.ravel())
    few = choose_thresholds(scores[:3], targets[:3] * 0)
    assert {(threshold.value, threshold.origin) for threshold in few} == {(0.5, "default")}
    everywhere = choose_thresholds(scores[:50, :1], np.ones((50, 1)))
    assert everywhere[0].origin == "shared"  # nothing to be told apart


def test_rows_name_what_is_undefined():
    scores, targets = drawn(1)
    targets[:, 0], targets[:7, 1] = 0, np.nan
    rows = class_rows("abcde", scores, scores, targets, choose_thresholds(scores, targets))
    assert [row["name"] for row in rows] == list("abcde")
    assert rows[0]["n"] == 0 and rows[0]["ap"] is None and rows[0]["f1"] is None
    assert rows[1]["unknown"] == 7 and rows[1]["n"] == int(np.nansum(targets[:, 1]))
