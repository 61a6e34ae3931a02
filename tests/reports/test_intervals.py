import numpy as np
import pytest
from scipy.stats import binomtest

from unfreeze.reports.intervals import balanced, mover_interval, wilson_interval


@pytest.mark.parametrize(("right", "total"), [(0, 10), (3, 10), (10, 10), (812, 1000)])
def test_wilson_is_scipys(right, total):
    wanted = binomtest(right, total).proportion_ci(0.95, "wilson")
    assert wilson_interval(right, total) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_a_difference_is_newcombes():
    """Newcombe 1998, Statistics in Medicine 17:873, table II: 56 of 70 against 48 of 80."""
    both = [wilson_interval(56, 70), wilson_interval(48, 80)]
    assert mover_interval([0.8, 0.6], both, [1, -1]) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_one_class_is_wilsons_and_empty_ones_do_not_count():
    assert balanced([(7, 9)]) == pytest.approx(wilson_interval(7, 9))
    assert balanced([(7, 9), (0, 0)]) == pytest.approx(wilson_interval(7, 9))
    assert balanced([(0, 0)]) == (0, 1)
    low, high = balanced([(5, 5), (9, 9)])
    assert low < 1 == high


def test_it_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    sizes, truths = np.array([200, 40, 15]), np.array([0.9, 0.7, 0.6])
    hits = draw.binomial(sizes, truths, (2000, 3))
    found = [balanced(list(zip(h, sizes.tolist(), strict=True))) for h in hits.tolist()]
    inside = [low <= truths.mean() <= high for low, high in found]
    assert 0.94 <= np.mean(inside) <= 0.98
