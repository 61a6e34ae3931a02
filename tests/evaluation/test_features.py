"""Statistics of features, gathered by a hook, beside those of all features at once."""

import pytest
import torch
from torch import nn

from unfreeze.evaluation.feature_metrics import feature_std
from unfreeze.evaluation.features import FeatureMeter, feature_meter


def test_batches_together_are_what_all_at_once_is():
    torch.manual_seed(0)
    features = torch.randn(50, 12).relu()
    features[:, 3] = 0
    features[:, 5] = 2.5
    meter = FeatureMeter(nn.Linear(12, 2))
    for batch in features.split(7):
        meter.take(batch)
    found = meter.statistics()
    assert (found.images, found.width, found.dead) == (50, 12, 2)
    assert found.spread == pytest.approx(feature_std(features), rel=1e-4)
    assert FeatureMeter(nn.Linear(12, 2)).statistics() is None


def test_the_same_features_for_all_have_no_spread():
    meter = FeatureMeter(nn.Linear(12, 2))
    meter.take(torch.rand(1, 12).expand(30, 12))
    assert meter.statistics().spread < 1e-6 and meter.statistics().dead == 12


@pytest.mark.parametrize(
    "head, shape",
    [
        (nn.Linear(6, 2), (5, 6)),
        (nn.Conv2d(6, 2, 1), (5, 6, 3, 4)),
        (nn.Linear(6, 2), (5, 3, 6)),
        (nn.Linear(6, 2), (5, 3, 4, 6)),
    ],
)
def test_what_the_head_is_fed_is_met_on_the_way(head, shape):
    network = nn.Sequential(nn.Identity(), head)
    with feature_meter(network, ["1.weight", "1.bias"]) as meter:
        network(torch.randn(shape))
        network(torch.randn(shape))
    network(torch.randn(shape))  # no longer looked at
    found = meter.statistics()
    assert (found.images, found.width, found.dead) == (10, 6, 0)
