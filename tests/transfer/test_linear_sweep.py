import math

import pytest

from unfreeze.transfer.linear_sweep import (
    DECAYS,
    RATES,
    STEPS,
    SweepTrial,
    best_trial,
    sweep_epochs,
    sweep_trials,
)


def test_the_planned_pair_is_first_and_what_is_given_is_not_varied():
    both = sweep_trials(0.03, 1e-4, free_lr=True, free_decay=True)
    assert both[0] == SweepTrial(0.03, 1e-4)
    assert len(both) == len(RATES) * len(DECAYS) == len({(t.lr, t.weight_decay) for t in both})
    rates = sweep_trials(0.03, 0.5, free_lr=True, free_decay=False)
    assert {t.weight_decay for t in rates} == {0.5} and len(rates) == len(RATES)
    decays = sweep_trials(0.7, 1e-4, free_lr=False, free_decay=True)
    assert {t.lr for t in decays} == {0.7} and [t.weight_decay for t in decays] == list(DECAYS)


def test_the_best_is_accuracy_then_loss_then_the_planned_one():
    planned = SweepTrial(0.1, 1e-4, epoch=3, accuracy=0.8, loss=0.5)
    better = SweepTrial(0.3, 1e-4, epoch=1, accuracy=0.8, loss=0.4)
    same = SweepTrial(1.0, 1e-4, epoch=1, accuracy=0.8, loss=0.5)
    diverged = SweepTrial(9.0, 1e-4)
    assert best_trial([planned, same, diverged]) is planned
    assert best_trial([diverged, planned, better]) is better
    assert "diverged" in diverged.text and "0.8000, loss 0.4000 in epoch 1" in better.text


@pytest.mark.parametrize(
    ("epochs", "steps", "images", "work", "expected"),
    [
        (30, 16, 500, 0.0, 30),  # small: all of them
        (100, 250, 50_000, 1e15, STEPS // 250),  # bounded by steps
        (100, 50, 50_000, 0.0, int(1e12 / (3 * 50_000 * 20_490 * 18))),  # by the least arithmetic
        (100, 50, 50_000, 1e13, 100),  # or what the pass took
        (7, 99_999, 10**9, 0.0, 1),  # at least one
    ],
)
def test_a_sweep_takes_no_more_than_the_pass(epochs, steps, images, work, expected):
    found = sweep_epochs(epochs, steps, images=images, weights=20_490, heads=18, work=work)
    assert found == expected and not math.isnan(found)
