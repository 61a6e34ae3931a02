"""Warnings: each turns when what it is about is broken, and stays silent on what is healthy."""

import math

import numpy as np
import pytest

from unfreeze.evaluation import checks
from unfreeze.evaluation.checks import FeatureStatistics, TrainingLosses

NAMES = tuple("abcdefghij")


def codes(found):
    return [one.code for one in found]


def confused(truth, recall, seed=0, classes=None):
    """Confusion of a classifier that is right with this probability, else anything else."""
    draw, classes = np.random.default_rng(seed), classes or len(truth)
    table = np.zeros((classes, classes), np.int64)
    for label, count in enumerate(truth):
        for _ in range(count):
            other = (label + draw.integers(1, classes)) % classes
            table[label, label if draw.random() < recall else other] += 1
    return table


def always(truth, answer):
    table = np.zeros((len(truth), len(truth)), np.int64)
    table[:, answer] = truth
    return table


# --- predictions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("classes, each", [(2, 4), (2, 20), (3, 7), (6, 2), (10, 5), (10, 50)])
def test_a_classifier_that_works_poorly_but_works_is_rarely_warned_of(classes, each):
    """Half of the way from guessing to perfect, with few images: a warning in one of 20 at most."""
    recall = 1 / classes + 0.5 * (1 - 1 / classes)
    names = [str(number) for number in range(classes)]
    found = [
        codes(checks.prediction_warnings(confused([each] * classes, recall, seed), names))
        for seed in range(400)
    ]
    for code in ("one_class", "class_never_predicted", "majority_accuracy"):
        assert sum(code in one for one in found) <= 0.05 * len(found), code


@pytest.mark.parametrize("classes, each", [(2, 60), (6, 20), (10, 12)])
def test_a_classifier_that_guesses_is_warned_of(classes, each):
    names = [str(number) for number in range(classes)]
    found = [
        codes(checks.prediction_warnings(confused([each] * classes, 1 / classes, seed), names))
        for seed in range(50)
    ]
    assert sum("majority_accuracy" in one for one in found) >= 40


def test_one_class_for_everything():
    found = checks.prediction_warnings(always([6, 6, 6], 1), NAMES)
    assert codes(found) == ["one_class"]
    assert "All 18 images are predicted as 'b'" in found[0].message
    table = always([6, 6, 6], 1)
    table[0] = [3, 3, 0]
    assert codes(checks.prediction_warnings(table, NAMES)) == ["class_never_predicted"]
    # four of another class are too few to say so, and where there is one class nothing is wrong
    assert codes(checks.prediction_warnings(always([4, 30, 0], 1), NAMES)) == []
    assert codes(checks.prediction_warnings(always([5, 30, 0], 1), NAMES)) == ["one_class"]
    both = ["one_class", "majority_accuracy"]
    assert codes(checks.prediction_warnings(always([60, 60, 0], 1), NAMES)) == both
    assert checks.prediction_warnings(always([0, 30, 0], 1), NAMES) == []


def test_a_class_that_is_never_predicted():
    table = np.diag([20, 20, 0]) + np.array([[0, 0, 0], [0, 0, 0], [10, 8, 0]])
    found = checks.prediction_warnings(table, NAMES)
    assert codes(found) == ["class_never_predicted"] and "'c' (18 images)" in found[0].message
    table[2] = [9, 8, 1]  # once is enough
    assert checks.prediction_warnings(table, NAMES) == []
    table[2] = [3, 2, 0]  # of five images chance may miss all
    assert checks.prediction_warnings(table, NAMES) == []
    table[2] = [0, 0, 0]  # a class that does not occur cannot be missed
    assert checks.prediction_warnings(table, NAMES) == []


def test_accuracy_at_the_share_of_the_majority():
    # 80 % right by answering the large class nearly always: what a hurried reader is content with
    found = checks.prediction_warnings(np.array([[396, 4], [98, 2]]), ("train", "val"))
    assert codes(found) == ["majority_accuracy"]
    assert "0.796" in found[0].message and "0.800" in found[0].message
    # the same accuracy, and both classes told apart: not what the majority would give
    assert checks.prediction_warnings(np.array([[315, 85], [17, 83]]), ("a", "b")) == []
    assert checks.prediction_warnings(np.array([[360, 40], [20, 80]]), ("a", "b")) == []
    # twelve images say nothing
    assert checks.prediction_warnings(np.array([[4, 2], [4, 2]]), ("a", "b")) == []


def test_no_images_no_warning():
    assert checks.prediction_warnings(np.zeros((3, 3), np.int64), NAMES) == []


# --- training ------------------------------------------------------------------------------------


def trained(*losses, correct=40, images=120, steps=200):
    return TrainingLosses(losses, correct, images, steps)


def test_a_loss_at_ln_k_is_nothing_learned():
    table, stuck = always([4, 4, 4], 0), [math.log(3)] * 30
    how = {"majority": 1 / 3, "best_epoch": 0}
    found = checks.nothing_learned(3, trained(*stuck), table, math.log(3), **how)
    assert codes(found) == ["nothing_learned"]
    assert "ln 3 = 1.099" in found[0].message and "best of 30 epochs is the first" in str(found[0])
    # a loss that fell, a training accuracy or an accuracy that is no guess: something was learned
    assert checks.nothing_learned(3, trained(1.1, 0.9), table, 1.0, **how) == []
    assert checks.nothing_learned(3, trained(1.1, 1.1, correct=80), table, 1.1, **how) == []
    works = np.diag([4, 4, 4])
    assert checks.nothing_learned(3, trained(*stuck), works, math.log(3), **how) == []


def test_the_cause_is_the_one_at_hand():
    def said(steps=200, **more):
        return checks.nothing_learned(
            3, trained(1.1, 1.1, steps=steps), None, None, majority=1 / 3, **more
        )[0].message

    assert "learning rate is 0" in said(lr=0.0)
    assert "8 steps are probably too few" in said(steps=8, lr=0.1)
    assert "frozen features" in said(steps=1, frozen=True, solved=True)
    assert "frozen features" in said(lr=0.1, frozen=True)
    assert "--find-lr" in said(lr=0.1)


def test_of_a_model_alone_only_ln_k_itself_says_that_nothing_was_learned():
    table = always([30, 30], 0)
    assert codes(checks.nothing_learned(2, None, table, math.log(2))) == ["nothing_learned"]
    # over-confident, and at chance: other warnings say so
    assert checks.nothing_learned(2, None, table, 1.4) == []
    assert checks.nothing_learned(2, None, np.diag([30, 30]), math.log(2)) == []
    assert checks.nothing_learned(2, None, None, None) == []


def test_a_rising_loss():
    assert codes(checks.diverging(6, [57, 71, 115, 3.6], 48)) == ["diverging"]
    assert codes(checks.diverging(3, [0.9, 0.5, 0.4, 1.6], 200)) == ["diverging"]
    assert codes(checks.diverging(3, [1.0, 1.1, 1.2, 1.4, 1.6, 1.9], 200)) == ["diverging"]
    found = checks.diverging(6, [57, 71, 115, 3.6], 48)[0].message
    assert "57 -> 115 -> 3.6" in found


@pytest.mark.parametrize(
    "losses",
    [
        [1.1],
        [1.1, 0.7, 0.4, 0.2],
        [57, 20, 6, 2.2],  # still on its way down from a new head
        [0.02, 0.01, 0.015, 0.03],  # of nothing
        [1.1, 1.09, 1.11, 1.1, 1.1],  # stands still
        [0.9, 0.5, 0.45, 0.55, 0.5],  # scatters
        [1.4, 2.0, 0.7, 0.3],  # a warm-up that was too fast, mended
    ],
)
def test_losses_that_fall_stand_still_or_scatter(losses):
    assert checks.diverging(3, losses, 100) == []


def test_means_of_few_images_may_scatter_more():
    rng = np.random.default_rng(0)
    for images in (8, 24, 100):
        # an exponential scatters as much as it is large; the mean falls from ln 2 to half of it
        curves = [
            [rng.exponential(math.log(2) * (1 - epoch / 20), images).mean() for epoch in range(10)]
            for _ in range(300)
        ]
        warned = sum(bool(checks.diverging(2, curve, images)) for curve in curves)
        assert warned <= 0.02 * len(curves), images


def test_epochs_are_read_from_the_records():
    def line(epoch, step, loss, correct, total, split="train"):
        return locals()

    records = [
        line(0, 1, 2.0, 1, 4),
        line(0, 2, 1.0, 2, 4),
        line(0, 2, 9.0, 9, 9, "val"),
        line(1, 3, 0.5, 4, 4),
        line(1, 4, 0.2, 2, 2),
    ]
    found = checks.training_losses(records)
    assert found.losses == pytest.approx((1.5, 0.4))
    assert (found.correct, found.images, found.steps) == (6, 6, 4)
    assert checks.training_losses([line(0, 0, 1.0, 1, 1, "sweep")]) is None


# --- images and features -------------------------------------------------------------------------


def test_few_images_choose():
    (found,) = checks.few_validation_images(12, choose=True)
    assert found.code == "few_validation_images"
    assert "8 points" in found.message and "the best epoch is mostly chance" in found.message
    (found,) = checks.few_validation_images(12, choose=False)
    assert "which epoch" not in found.message
    assert checks.few_validation_images(checks.FEW, choose=True) == []
    assert checks.few_validation_images(0, choose=True) == []  # nothing is chosen by them
    # the reason for the threshold
    from unfreeze.reports.intervals import wilson_interval

    low, high = wilson_interval(checks.FEW // 2, checks.FEW)
    assert high - low > 0.4 and 1 / (checks.FEW - 1) > 0.05


def test_a_leak():
    found = checks.leakage_warning(12, 32, "val", 0.9, 0.85)
    assert codes(found) == ["leakage"]
    assert "12 of 32 images of val" in found[0].message
    assert "0.900 with them and 0.850 without" in found[0].message
    assert "not measured" in checks.leakage_warning(32, 32, "val", 0.9, None)[0].message
    assert (
        "accuracy on them is too high"
        in checks.leakage_warning(3, 32, "val", None, None)[0].message
    )
    assert checks.leakage_warning(0, 32, "val", 0.9, 0.9) == []
    assert checks.leakage_warning(None, 32, "val", 0.9, None) == []


def test_features_that_say_nothing():
    assert codes(checks.constant_features_warning(FeatureStatistics(40, 512, 1e-7, 512))) == [
        "constant_features"
    ]
    assert codes(checks.constant_features_warning(FeatureStatistics(300, 512, 0.4, 300))) == [
        "constant_features"
    ]
    # a dimension that is seldom alive is dead in twelve images, in three hundred it is not
    assert checks.constant_features_warning(FeatureStatistics(12, 512, 0.4, 300)) == []
    assert checks.constant_features_warning(FeatureStatistics(300, 512, 0.4, 60)) == []
    assert checks.constant_features_warning(FeatureStatistics(1, 512, 0.0, 512)) == []
    assert checks.constant_features_warning(None) == []


def test_each_message_has_a_next_step():
    found = [
        *checks.prediction_warnings(always([60, 60], 0), NAMES),
        *checks.prediction_warnings(np.array([[20, 0, 0], [0, 20, 0], [10, 10, 0]]), NAMES),
        *checks.nothing_learned(2, trained(0.7, 0.7, steps=90), None, None, majority=0.5),
        *checks.diverging(6, [57, 71, 115, 3.6], 48),
        *checks.few_validation_images(4, choose=True),
        *checks.leakage_warning(2, 8, "test", 0.9, 0.8),
        *checks.constant_features_warning(FeatureStatistics(40, 512, 1e-7, 512)),
    ]
    assert len({one.code for one in found}) == 8
    for one in found:
        assert one.message.endswith(".") and str(one) == one.message
        assert "--" in one.message or "`unfreeze" in one.message, one.code
