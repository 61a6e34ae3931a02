"""The ridge classifier equals fits without the image, one after another."""

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from unfreeze.evaluation.ridge import PENALTIES, ridge_hits


def problem(count, dimensions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    centres = torch.randn(3, dimensions, generator=generator)
    noise = torch.randn(count, dimensions, generator=generator)
    return centres[labels] * 0.4 + noise, labels


@pytest.mark.parametrize(("count", "dimensions"), [(80, 12), (30, 60)])
def test_it_equals_fits_without_the_image_and_on_all_for_queries(count, dimensions):
    x, labels = problem(count, dimensions)
    labels[: count // 4] = 0  # classes of unequal size
    queries, truth = problem(40, dimensions, seed=1)
    scale = StandardScaler().fit(x)
    scaled = scale.transform(x) / dimensions**0.5
    best = None
    for penalty in PENALTIES:
        targets = torch.nn.functional.one_hot(labels).double().numpy()
        left_out = []
        for i in range(len(x)):
            others = [j for j in range(len(x)) if j != i]
            fit = Ridge(alpha=penalty).fit(scaled[others], targets[others])
            left_out.append(int(fit.predict(scaled[i : i + 1]).argmax()) == int(labels[i]))
        fit = Ridge(alpha=penalty).fit(scaled, targets)
        predicted = fit.predict(scale.transform(queries) / dimensions**0.5).argmax(1)
        if best is None or sum(left_out) > best[0]:
            best = sum(left_out), left_out, predicted
    assert ridge_hits(x, labels, None, None).tolist() == best[1]
    assert (ridge_hits(x, labels, queries, truth).numpy() == (best[2] == truth.numpy())).all()
    assert 0.3 < best[0] / count < 1  # a problem that can be told apart, but not wholly


def test_labels_may_be_any_numbers_and_features_constant():
    x, labels = problem(40, 5)
    assert torch.equal(
        ridge_hits(x, labels, None, None), ridge_hits(x, 7 * labels + 100, None, None)
    )
    unknown = ridge_hits(x, labels, x[:4], torch.full((4,), 99))
    assert not unknown.any()
    constant = ridge_hits(torch.ones(40, 5), labels, None, None)
    assert len(constant) == 40 and constant.float().mean() < 0.6


def test_random_features_tell_nothing():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 64, generator=generator)
    labels = torch.randint(0, 4, (400,), generator=generator)
    assert 0.17 < ridge_hits(x, labels, None, None).float().mean() < 0.33


def test_features_of_a_network_that_diverges_are_classified_by_chance():
    x, labels = problem(60, 8)
    x[:] = float("nan")
    x[0], x[1] = float("inf"), 1e30
    assert ridge_hits(x, labels, None, None).float().mean() < 0.6
    assert ridge_hits(x, labels, x[:3], labels[:3]).dtype == torch.bool


def test_dead_features_change_nothing():
    x, labels = problem(60, 8)
    with_dead = torch.cat([x, torch.full((60, 100), 3.0)], dim=1)
    assert torch.equal(ridge_hits(x, labels, None, None), ridge_hits(with_dead, labels, None, None))
