import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from unfreeze.evaluation.calibration import (
    BINS,
    COLDEST,
    apply_temperature,
    calibration_bins,
    calibration_error,
    fit_temperature,
)


def drawn(count, classes, sharpness, seed=0):
    """Logits whose softmax at a temperature of `sharpness` is how the labels were drawn."""
    draw = np.random.default_rng(seed)
    scores = draw.normal(0, 2, (count, classes))
    noise = draw.gumbel(size=scores.shape)
    labels = (scores + noise).argmax(axis=1)
    return torch.from_numpy(scores * sharpness), torch.from_numpy(labels)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_bins_are_those_of_scikit_learn(sharpness):
    logits, labels = drawn(500, 4, sharpness)
    chances = logits.softmax(1)
    right = (chances.argmax(1) == labels).numpy()
    sure = chances.max(1).values.numpy()
    accuracy, confidence = calibration_curve(right, sure, n_bins=BINS)
    found = calibration_bins(chances, labels)
    assert [b.accuracy for b in found] == pytest.approx(accuracy.tolist())
    assert [b.confidence for b in found] == pytest.approx(confidence.tolist())
    counts = np.array([b.n for b in found])
    assert counts.sum() == 500 and all(b.low < b.confidence <= b.high for b in found)
    wanted = (counts / 500 * np.abs(accuracy - confidence)).sum()
    assert calibration_error(found) == pytest.approx(wanted)


def test_the_error_tells_the_sure_from_the_honest():
    errors = {}
    for sharpness in (1.0, 4.0):
        logits, labels = drawn(20_000, 5, sharpness)
        errors[sharpness] = calibration_error(calibration_bins(logits.softmax(1), labels))
    assert errors[1.0] < 0.015 < 0.1 < errors[4.0]


def test_the_edges_belong_below():
    half = torch.tensor([[0.6, 0.4], [1.0, 0.0]], dtype=torch.float64)
    found = calibration_bins(half, torch.tensor([0, 0]))
    assert [round(b.high, 3) for b in found] == [0.6, 1.0]


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_is_scipys(sharpness):
    logits, labels = drawn(300, 6, sharpness, seed=2)

    def loss(log_temperature):
        scaled = (logits / np.exp(log_temperature)).softmax(1)
        return log_loss(labels.numpy(), scaled.numpy(), labels=range(6))

    wanted = np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x)
    assert fit_temperature(logits, labels) == pytest.approx(wanted, rel=1e-3)
    assert wanted == pytest.approx(sharpness, rel=0.2)


def test_where_all_is_right_there_is_no_limit():
    logits = torch.eye(3, dtype=torch.float64)
    assert fit_temperature(logits, torch.arange(3)) == COLDEST


def test_a_temperature_keeps_the_order():
    logits, _ = drawn(50, 4, 1.0)
    assert torch.equal(apply_temperature(logits, 3.7).argmax(1), logits.argmax(1))
    assert apply_temperature(logits, 1.0) is logits
