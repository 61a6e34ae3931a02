import math
from itertools import pairwise

import pytest
import torch

from unfreeze.runtime.console import QuietConsole
from unfreeze.transfer.lr_finder import SmoothedLoss, find_lr, geometric_rates, steepest_rate


def test_rates_are_spread_by_equal_factors():
    rates = geometric_rates(0.02, 100)
    assert rates[0] == pytest.approx(2e-5) and rates[-1] == pytest.approx(20)
    factors = [b / a for a, b in pairwise(rates)]
    assert factors == pytest.approx([factors[0]] * 99)


def test_smoothing_has_no_bias_and_sees_explosions():
    smooth = SmoothedLoss()
    assert not any(smooth.add(2.0) for _ in range(30))
    assert smooth.values == pytest.approx([2.0] * 30)
    assert [smooth.add(200.0)] == [True]
    assert SmoothedLoss().add(math.nan) and SmoothedLoss().add(math.inf)


def test_the_steepest_fall_is_taken_and_none_where_nothing_falls():
    rates = geometric_rates(1.0, 100)
    # falls fastest at the 60th
    falling = [2 - 1 / (1 + math.exp(-(i - 60) / 4)) for i in range(100)]
    assert steepest_rate(rates, falling) == pytest.approx(rates[60], rel=0.05)
    assert steepest_rate(rates, [2.0] * 100) is None
    assert steepest_rate(rates, sorted(falling)) is None
    assert steepest_rate(rates, falling[:12]) is None  # too few to say


def test_the_run_is_as_it_was_and_the_rate_is_of_use(make_trainer):
    straight = make_trainer("straight", validate=False)
    straight.train_to_best(QuietConsole())
    probed = make_trainer("probed", validate=False)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = find_lr(probed, QuietConsole(), lambda: False)
    assert torch.equal(state, torch.get_rng_state())
    assert len(found.rates) == len(found.losses) == len(found.smoothed) <= 100
    assert found.lr is None or 5e-5 <= found.lr <= 50
    probed.train_to_best(QuietConsole())
    one, other = straight.network.state_dict(), probed.network.state_dict()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_it_explodes_before_the_largest_rate(make_trainer):
    found = find_lr(make_trainer(validate=False), QuietConsole(), lambda: False)
    assert len(found.rates) < 100 and found.smoothed[-1] > 4 * min(found.smoothed)


def test_what_stands_still_is_not_moved_and_a_request_is_heard(make_trainer):
    assert find_lr(make_trainer("a", validate=False), QuietConsole(), lambda: True) is None
