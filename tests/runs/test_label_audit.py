"""Which suspects stand first, and which label copies of one image should have."""

import numpy as np

from unfreeze.runs.labelling.audit import DISAGREES, DUPLICATE, agreed_label, suspects_of

SURE = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.1, 0.9]])


def test_most_copies_decide_and_then_the_probability():
    labels = np.array([0, 0, 1, 1])
    probabilities = SURE[[1, 1, 1, 1]]
    assert agreed_label(probabilities, labels, [0, 1, 2]) == 0  # two against one
    assert agreed_label(probabilities, labels, [0, 2]) == 1  # one each: the more probable
    assert agreed_label(SURE[[0, 0, 0, 0]], labels, [0, 2]) == 0


def test_copies_come_first_and_each_image_once():
    labels = np.array([0] * 6 + [1] * 6 + [2] * 6)
    probabilities = SURE[labels].copy()
    probabilities[0] = [0.3, 0.7, 0.0]
    probabilities[7] = [0.02, 0.08, 0.9]  # the worst, but no copy
    probabilities[12] = [0.0, 0.8, 0.2]
    probabilities[6] = [0.3, 0.7, 0.0]
    found = suspects_of(probabilities, labels, [[0, 6]])
    assert [(s.position, s.suggested, s.reason) for s in found] == [
        (0, 1, DUPLICATE), (7, 2, DISAGREES), (12, 1, DISAGREES),
    ]  # fmt: skip
    assert [s.score for s in found] == [0.7, 0.92, 0.8]
    assert [s.probability for s in found] == [0.7, 0.9, 0.8]


def test_the_copy_that_is_right_is_no_suspect():
    """Its classifier prefers the label that its copies are suspected of."""
    labels = np.array([0] * 4 + [1] * 4)
    probabilities = SURE[labels].copy()
    probabilities[[0, 1, 4]] = [0.2, 0.8, 0.0]
    found = suspects_of(probabilities[:, :2], labels, [[0, 1, 4]])
    assert [(s.position, s.suggested) for s in found] == [(4, 0)]  # 0, 0 against 1
