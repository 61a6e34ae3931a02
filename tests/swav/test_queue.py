import pytest
import torch

from unfreeze.errors import UsageError
from unfreeze.swav.queue import FeatureQueue


def batch(value, B=2):
    return [torch.full((B, 3), float(value)), torch.full((B, 3), value + 0.5)]


def test_newest_first_oldest_out_and_full_only_when_real():
    bank = FeatureQueue(2, 6, 3)
    for step in range(1, 5):
        assert bank.full == (step > 3)
        bank.push(batch(step))
    assert bank.features[0, :, 0].tolist() == [4, 4, 3, 3, 2, 2]
    assert bank.features[1, :, 0].tolist() == [4.5, 4.5, 3.5, 3.5, 2.5, 2.5]


def test_its_state_brings_back_how_full_it_is():
    bank, other = FeatureQueue(2, 4, 3), FeatureQueue(2, 4, 3)
    bank.push(batch(1))
    other.load_state_dict(bank.state_dict())
    assert other.filled == 2 and torch.equal(other.features, bank.features)


def test_a_length_that_is_no_multiple_of_the_batch_is_refused():
    with pytest.raises(UsageError, match="multiple of 4"):
        FeatureQueue(2, 6, 3).push(batch(1, B=4))
