"""Figures without labels against references and against cases whose answer is known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unfreeze.evaluation import feature_metrics as metrics
from unfreeze.swav.sinkhorn import sinkhorn


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("shape", [(300, 40), (40, 300)])
def test_effective_rank_is_the_entropy_of_numpys_singular_values(draw, shape):
    X = torch.randn(shape, generator=draw) @ torch.diag(torch.logspace(0, -3, shape[1]))
    values = np.linalg.svd(X.double().numpy(), compute_uv=False)
    p = values / values.sum()
    assert metrics.effective_rank(X) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)


def test_effective_rank_counts_directions():
    assert metrics.effective_rank(torch.ones(50, 8)) == pytest.approx(1, abs=1e-3)
    assert metrics.effective_rank(torch.eye(8).repeat(5, 1)) == pytest.approx(8)


def test_spread_is_one_for_even_features_and_nought_for_one_point(draw):
    even = torch.randn(20_000, 64, generator=draw)
    assert metrics.feature_std(even) == pytest.approx(1, abs=0.01)
    assert metrics.feature_std(torch.ones(50, 8)) == pytest.approx(0, abs=1e-6)


def test_alignment_and_uniformity_by_their_definitions(draw):
    one, other = torch.randn(2, 30, 5, generator=draw)
    x, y = (F.normalize(t.double(), dim=1) for t in (one, other))
    by_pair = [((x[i] - y[i]) ** 2).sum() for i in range(30)]
    assert metrics.alignment(one, other) == pytest.approx(float(sum(by_pair)) / 30, rel=1e-5)
    kernel = [
        torch.exp(-2 * ((x[i] - x[j]) ** 2).sum()) for i in range(30) for j in range(30) if i < j
    ]
    expected = math.log(float(sum(kernel)) / len(kernel))
    assert metrics.uniformity(one) == pytest.approx(expected, rel=1e-4)
    assert metrics.alignment(one, one) == 0
    assert metrics.uniformity(torch.ones(10, 3)) == pytest.approx(0, abs=1e-6)


def test_codes_that_say_nothing_and_codes_that_say_all():
    nothing, all_of_it = torch.full((8, 4), 0.25), torch.eye(4).repeat(2, 1)
    assert float(metrics.code_entropy(nothing)) == pytest.approx(1)
    assert float(metrics.code_entropy(all_of_it)) == pytest.approx(0)
    assert metrics.usage_entropy(nothing) == metrics.usage_entropy(all_of_it) == pytest.approx(1)
    one = F.one_hot(torch.zeros(8, dtype=torch.long), 4).float()
    assert metrics.usage_entropy(one) == pytest.approx(0)
    assert [metrics.mutual_information(p) for p in (nothing, all_of_it, one)] == pytest.approx(
        [0, 1, 0]
    )
    assert metrics.perplexity(all_of_it.mean(0)) == pytest.approx(4)


def test_information_is_scikit_learns_mutual_information_of_hard_predictions(draw):
    from sklearn.metrics import mutual_info_score

    nearest = torch.randint(0, 6, (500,), generator=draw)
    hard = F.one_hot(nearest, 6).float()
    expected = mutual_info_score(nearest.numpy(), np.arange(500)) / math.log(6)
    assert metrics.mutual_information(hard) == pytest.approx(expected, rel=1e-5)


def test_agreement_and_prototypes_in_use():
    one, other = torch.eye(4)[[0, 1, 2, 3]], torch.eye(4)[[0, 1, 3, 2]]
    assert metrics.agreement(one, other) == 0.5
    assert metrics.prototypes_in_use(torch.tensor([0, 0, 2]), 5) == 2


def test_trap_t18_identical_prototypes_are_counted(draw):
    """swav#71: many prototypes of the released model are the same."""
    C = F.normalize(torch.randn(20, 32, generator=draw), dim=1)
    assert metrics.duplicate_share(C) == 0
    C[3] = 5 * C[7]  # the same direction
    assert metrics.duplicate_share(C) == pytest.approx(2 / 20)
    assert metrics.duplicate_share(torch.ones(6, 4)) == 1


def test_trap_t5_more_prototypes_than_a_batch_are_seen_to_be_unused(draw):
    """swav#42, #118: with fewer images than prototypes some are nobody's nearest."""
    scores = (
        F.normalize(torch.randn(16, 8, generator=draw), dim=1)
        @ F.normalize(torch.randn(100, 8, generator=draw), dim=1).T
    )
    codes = sinkhorn(scores, epsilon=0.02)
    assert metrics.prototypes_in_use(codes.argmax(dim=1), 100) <= 16
    assert metrics.perplexity(codes.mean(0)) < 100
