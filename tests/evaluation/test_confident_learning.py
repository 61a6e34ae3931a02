"""Confident learning beside the paper's formulas, written as loops (arXiv 1911.00068)."""

import numpy as np
import pytest

from unfreeze.evaluation.confident_learning import (
    calibrated_joint,
    class_thresholds,
    confident_classes,
    confident_joint,
    self_confidence,
    suspicious_labels,
)


def noisy(seed, images=200, classes=4, wrong=0.15):
    """(probabilities of a decent classifier, given labels of which some are wrong)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, images)
    labels = np.where(rng.random(images) < wrong, rng.integers(0, classes, images), truth)
    labels[:classes] = np.arange(classes)
    logits = rng.normal(size=(images, classes)) + 2.5 * np.eye(classes)[truth]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def slow_thresholds(p, labels):
    k = p.shape[1]
    return [np.mean([p[x, j] for x in range(len(p)) if labels[x] == j]) for j in range(k)]


def slow_joint(p, labels):
    """Equation 1, image by image."""
    k, t = p.shape[1], slow_thresholds(p, labels)
    joint = np.zeros((k, k), int)
    for x in range(len(p)):
        above = [j for j in range(k) if p[x, j] >= t[j]]
        if above:
            joint[labels[x], max(above, key=lambda j: p[x, j])] += 1
    return joint


def slow_suspects(p, labels):
    """The n * sum of Q_ij over i != j least self-confident images, if another class is likelier."""
    k, joint, errors = p.shape[1], slow_joint(p, labels), 0.0
    for i in range(k):
        of_class = sum(1 for label in labels if label == i)
        errors += sum(joint[i, j] / sum(joint[i]) * of_class for j in range(k) if j != i)
    worst = sorted(range(len(p)), key=lambda x: p[x, labels[x]])[: round(errors)]
    return [x for x in worst if p[x].argmax() != labels[x]]


@pytest.mark.parametrize("seed", range(6))
def test_everything_equals_the_paper(seed):
    p, labels = noisy(seed, classes=2 + seed)
    assert class_thresholds(p, labels) == pytest.approx(slow_thresholds(p, labels))
    assert np.array_equal(confident_joint(p, labels), slow_joint(p, labels))
    assert suspicious_labels(p, labels).tolist() == slow_suspects(p, labels)
    assert len(slow_suspects(p, labels)) > 3


def test_the_calibrated_joint_has_the_images_of_each_label():
    p, labels = noisy(3)
    joint = calibrated_joint(confident_joint(p, labels), labels)
    assert joint.sum(axis=1) == pytest.approx(np.bincount(labels))
    # a label none of whose images is counted: no error is estimated
    empty = calibrated_joint(np.array([[0, 0], [1, 3]]), np.array([0, 0, 1, 1]))
    assert empty.tolist() == [[2, 0], [0.5, 1.5]]


def test_a_class_below_every_threshold_counts_for_none():
    p = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.4, 0.6]])
    labels = np.array([0, 0, 1, 1])
    assert class_thresholds(p, labels) == pytest.approx([0.7, 0.7])
    assert confident_classes(p, labels).tolist() == [0, -1, 1, -1]


def test_the_order_of_the_images_changes_nothing():
    p, labels = noisy(1)
    order = np.random.default_rng(0).permutation(len(p))
    assert order[suspicious_labels(p[order], labels[order])].tolist() == (
        suspicious_labels(p, labels).tolist()
    )


def test_names_of_classes_change_nothing():
    p, labels = noisy(2)
    names = np.array([2, 0, 3, 1])
    renamed = np.empty_like(p)
    renamed[:, names] = p
    assert (
        suspicious_labels(renamed, names[labels]).tolist() == suspicious_labels(p, labels).tolist()
    )


def test_a_sure_classifier_that_agrees_suspects_nothing():
    labels = np.arange(30) % 3
    assert len(suspicious_labels(0.9 * np.eye(3)[labels] + 0.1 / 3, labels)) == 0


def test_the_list_is_in_order_of_self_confidence():
    p, labels = noisy(4)
    listed = suspicious_labels(p, labels)
    assert (np.diff(self_confidence(p, labels)[listed]) >= 0).all()


@pytest.mark.parametrize("labels", [[0, 0], [0, 3]])
def test_a_class_without_images_has_no_threshold(labels):
    with pytest.raises(ValueError, match="every class needs an image"):
        class_thresholds(np.full((2, 2), 0.5), np.array(labels))
