"""The ridge classifier equals a reference, and its leave-one-out predictions equal refits."""

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from unfreeze.evaluation.ridge import PENALTIES, _fit, ridge_hits


def problem(count, dimensions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    centres = torch.randn(3, dimensions, generator=generator)
    noise = torch.randn(count, dimensions, generator=generator)
    return centres[labels] * 0.4 + noise, labels


@pytest.mark.parametrize(("count", "dimensions"), [(30, 6), (20, 50)])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_leave_one_out_equals_a_fit_without_the_image(count, dimensions, penalty):
    x, labels = problem(count, dimensions)
    x = x.double() - x.double().mean(0)
    targets = torch.nn.functional.one_hot(labels).double()
    values, vectors = torch.linalg.eigh(x @ x.T)
    _, left_out = _fit(values, vectors, targets, penalty)
    alpha = penalty * float(values.mean())
    for i in range(count):
        others = [j for j in range(count) if j != i]
        refit = Ridge(alpha=alpha).fit(x[others], targets[others])
        assert left_out[i].tolist() == pytest.approx(refit.predict(x[i : i + 1])[0], abs=1e-8)


def test_queries_are_classified_as_by_scikit_learn():
    x, labels = problem(80, 12)
    queries, truth = problem(40, 12)
    scale = StandardScaler().fit(x)
    scaled = scale.transform(x) / 12**0.5
    best = None
    for penalty in PENALTIES:
        alpha = penalty * float((scaled**2).sum()) / len(x)
        targets = torch.nn.functional.one_hot(labels).double().numpy()
        left_out = []
        for i in range(len(x)):
            others = [j for j in range(len(x)) if j != i]
            fit = Ridge(alpha=alpha).fit(scaled[others], targets[others])
            left_out.append(int(fit.predict(scaled[i : i + 1]).argmax()) == int(labels[i]))
        fit = Ridge(alpha=alpha).fit(scaled, targets)
        predicted = fit.predict(scale.transform(queries) / 12**0.5).argmax(1)
        if best is None or sum(left_out) > best[0]:
            best = sum(left_out), left_out, predicted
    assert ridge_hits(x, labels, None, None).tolist() == best[1]
    assert (ridge_hits(x, labels, queries, truth).numpy() == (best[2] == truth.numpy())).all()
    assert 0.5 < best[0] / 80 < 1  # a problem that can be told apart, but not wholly


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
