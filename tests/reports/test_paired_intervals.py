"""Intervals over seeds and images: against closed forms, and against how often they hold."""

import math

import numpy as np
import pytest
from scipy import stats

from unfreeze.reports.intervals import accuracy_over_seeds, paired_difference, wilson_interval


def rights(*counts, n=100):
    """Arrays with that many right of n, the same images first."""
    return [np.arange(n) < count for count in counts]


def test_one_seed_is_wilsons_for_the_accuracy():
    found = accuracy_over_seeds(rights(83), 100)
    assert (found.low, found.high) == pytest.approx(wilson_interval(83, 100))
    assert found.mean == 0.83 and found.deviation is None


def test_one_seed_is_bonett_and_prices_for_the_difference():
    draw = np.random.default_rng(0)
    a, b = draw.random(200) < 0.8, draw.random(200) < 0.7
    only_a, only_b, n = (a & ~b).sum() + 1, (~a & b).sum() + 1, 202
    p, q = only_a / n, only_b / n
    half = stats.norm.ppf(0.975) * math.sqrt((p + q - (p - q) ** 2) / n)
    found = paired_difference([a], [b], 200, shared=True)
    assert (found.low, found.high) == pytest.approx((p - q - half, p - q + half))
    assert found.mean == pytest.approx(a.mean() - b.mean())


def test_seeds_add_students_t():
    means = np.array([0.7, 0.8, 0.9])
    low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    images = wilson_interval(80, 100)
    found = accuracy_over_seeds(rights(70, 80, 90), 100)
    assert found.high == min(1, 0.8 + math.hypot(high - 0.8, images[1] - 0.8))
    assert found.low == pytest.approx(0.8 - math.hypot(0.8 - low, 0.8 - images[0]))
    assert found.deviation == pytest.approx(0.1)


def test_pairing_is_by_image():
    draw = np.random.default_rng(1)
    a = draw.random(400) < 0.7
    better = a | (draw.random(400) < 0.1)  # right wherever a is
    paired = paired_difference([better], [a], 400, shared=True)
    mixed = paired_difference([better], [draw.permutation(a)], 400, shared=True)
    assert paired.high - paired.low < 0.6 * (mixed.high - mixed.low)
    assert paired.low > 0 > mixed.low


def test_the_same_answers_differ_by_nothing_and_still_leave_room():
    found = paired_difference(rights(5, n=6), rights(5, n=6), 6, shared=True)
    assert found.mean == 0 and found.low < -0.1 and found.high > 0.1
    all_better = paired_difference(rights(6, n=6), rights(0, n=6), 6, shared=True)
    assert all_better.mean == 1 and all_better.low < 0.9


def test_more_images_are_not_more_seeds():
    """Two seeds that disagree leave it open however many images there are."""
    found = paired_difference(
        rights(60_000, 80_000, n=100_000),
        rights(50_000, 50_000, n=100_000),
        100_000,
        shared=True,
    )
    assert found.mean == pytest.approx(0.2) and found.low < 0 < found.high


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, shared):
    """Accuracies that vary by seed and by image; the truth is the mean over both."""
    draw, hits, rounds, n = np.random.default_rng(seeds), [], 400, 120
    spread = 0.0 if seeds == 1 else 0.04  # one seed says nothing of others
    for _ in range(rounds):
        hard = draw.uniform(-0.3, 0.3, (1 if shared else seeds, n))
        chances = [
            np.clip(level + draw.normal(0, spread, (seeds, 1)) + hard, 0, 1) for level in (0.6, 0.5)
        ]
        a, b = ([row > draw.random(n) for row in np.broadcast_to(c, (seeds, n))] for c in chances)
        found = paired_difference(a, b, n if shared else n * seeds, shared=shared)
        hits.append(found.low <= 0.1 <= found.high)
    assert np.mean(hits) >= 0.93


@pytest.mark.parametrize("part", [1.0, 0.2], ids=["the same images", "a part of them"])
def test_images_that_are_judged_again_are_no_new_ones(part):
    """Ten seeds hold out some of 80 images, most of which are always right or always wrong."""
    draw, hits, pairs = np.random.default_rng(0), [], []
    for _ in range(400):
        easy = np.clip(draw.normal(0.7, 0.5, 80), 0, 1)
        harder = np.where(draw.random(80) < 0.2, np.clip(draw.normal(0.7, 0.5, 80), 0, 1), easy)
        chosen = [draw.permutation(80)[: round(part * 80)] for _ in range(10)]
        a, b = ([c[own] > draw.random(len(own)) for own in chosen] for c in (easy, harder))
        truth = np.clip(np.random.default_rng(1).normal(0.7, 0.5, 10**5), 0, 1).mean()
        found = accuracy_over_seeds(a, len(np.unique(chosen)))
        hits.append(found.low <= truth <= found.high)
        apart = paired_difference(a, b, len(np.unique(chosen)), shared=False)
        pairs.append(apart.low <= 0 <= apart.high)
    assert np.mean(hits) >= 0.93 and np.mean(pairs) >= 0.93
    assert accuracy_over_seeds(a, 10 * len(a[0])).low > found.low  # as if each were a new one
