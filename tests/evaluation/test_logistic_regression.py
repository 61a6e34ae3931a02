"""Logistic regression on features: beside scikit-learn, at any scale, and folded into one layer."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from unfreeze.evaluation import logistic_regression
from unfreeze.evaluation.logistic_regression import (
    SCALINGS,
    STRENGTHS,
    LogisticProblem,
    choose_candidate,
    fit_logistic,
    scale_features,
    split_folds,
)


def samples(count=60, width=20, classes=3, noise=1.0, seed=0):
    """(features, labels) of Gaussian classes, shuffled."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.arange(count) % classes)
    means = draw.normal(size=(classes, width))
    features = means[labels] + noise * draw.normal(size=(count, width))
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def accuracy(found, features, labels):
    scores = functional.linear(features, found.weight, found.bias)
    return float((scores.argmax(1) == labels).double().mean())


@pytest.mark.parametrize("width", [20, 200])  # fewer features than samples, and more
@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_the_solution_is_scikit_learns(width, strength):
    features, labels = samples(width=width)
    scaled = scale_features(features, SCALINGS[1])
    problem = LogisticProblem.of(scaled, labels, torch.ones(3), 0.0)
    weight, bias = problem.solve(strength)
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
    theirs.fit(scaled.training.numpy(), labels.numpy())
    ours = functional.linear(scaled.training, weight, bias)
    expected = torch.from_numpy(theirs.decision_function(scaled.training.numpy()))
    # scores of all classes may be moved together: only their differences count
    difference = (ours - ours.mean(1, True)) - (expected - expected.mean(1, True))
    assert difference.abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s.name)
def test_scaling_and_basis_are_folded_into_one_layer(scaling):
    features, labels = samples(width=200)
    scaled = scale_features(features * 30 + 7, scaling)
    layer = LogisticProblem.of(scaled, labels, torch.ones(3), 0.0).solve(10.0)
    weight, bias = scaled.layer(*layer)
    served = functional.linear(scaled.served, *layer).float()
    assert torch.allclose(functional.linear(features * 30 + 7, weight, bias), served, atol=1e-3)
    assert scaled.training.shape == (60, 60) or scaled.training.shape == (60, 59)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("count", [3, 30, 150])  # one, ten and fifty of each class
def test_it_is_as_good_at_any_scale_of_features(size, count):
    features, labels = samples(count=count + 300, width=64, noise=1.5)
    train, test = slice(0, count), slice(count, None)
    found = fit_logistic(features[train] * size, labels[train], 3)
    plain = fit_logistic(features[train], labels[train], 3)
    right = accuracy(found, features[test] * size, labels[test])
    assert right == pytest.approx(accuracy(plain, features[test], labels[test]), abs=0.01)
    theirs = LogisticRegression(max_iter=1000).fit(features[train].numpy(), labels[train].numpy())
    assert right > theirs.score(features[test].numpy(), labels[test].numpy()) - 0.05


def test_constant_and_dead_features_get_no_weight_and_break_nothing():
    features, labels = samples()
    features[:, 3], features[:, 4] = 0.0, 5.0
    found = fit_logistic(features, labels, 3)
    assert torch.isfinite(found.weight).all() and (found.weight[:, 3] == 0).all()
    same = fit_logistic(torch.ones(9, 4), torch.arange(9) % 3, 3)
    assert torch.isfinite(same.weight).all() and torch.isfinite(same.bias).all()


def test_class_weights_count_as_repeated_samples():
    features, labels = samples(count=40, classes=2)
    heavy = labels == 1
    twice = torch.cat([features, features[heavy]]), torch.cat([labels, labels[heavy]])
    scaled = scale_features(features, SCALINGS[1])
    weighted = LogisticProblem.of(scaled, labels, torch.tensor([1.0, 2.0]), 0.0).solve(10.0)
    again = torch.cat([scaled.training, scaled.training[heavy]])
    repeated = LogisticProblem(again, again, twice[1], torch.ones(2).double(), 0.0).solve(10.0)
    assert torch.allclose(weighted[0], repeated[0], atol=1e-4)


def test_smoothed_labels_give_softer_scores():
    features, labels = samples(noise=0.1)
    problem = [
        LogisticProblem.of(scale_features(features, SCALINGS[1]), labels, torch.ones(3), s)
        for s in (0, 0.2)
    ]
    sharp, soft = (functional.linear(p.training, *p.solve(100.0)).softmax(1).max(1)[0].mean()
                   for p in problem)  # fmt: skip
    assert soft < sharp


def test_one_image_of_a_class_is_solved_without_cross_validation():
    features, labels = samples(count=3)
    found = fit_logistic(features, labels, 3)
    assert (found.folds, found.candidates, found.chosen) == (0, (), None)
    assert accuracy(found, features, labels) == 1


def test_a_class_with_one_image_among_larger_ones_is_no_obstacle():
    features, labels = samples(count=41, classes=2)
    labels[0] = 2
    found = fit_logistic(features, labels, 3)
    assert found.folds == 5 and found.weight.shape == (3, 20)
    assert all(np.isfinite(one.loss) for one in found.candidates)


def test_groups_are_never_on_both_sides():
    labels = np.arange(40) % 2
    groups = np.arange(40) // 4
    for training, held in split_folds(labels, groups):
        assert not set(groups[training]) & set(groups[held])


def test_the_choice_is_by_held_out_samples_and_the_weakest_of_equals():
    features, labels = samples(count=90, width=30, noise=3.0)
    found = fit_logistic(features, labels, 3)
    assert len(found.candidates) == len(SCALINGS) * len(STRENGTHS)
    best = min(found.candidates, key=lambda one: one.loss)
    taken = choose_candidate(found.candidates)
    assert taken.strength >= best.strength and taken.not_worse_than(best)
    assert (found.scaling, found.strength) == (taken.scaling, taken.strength)
    worse = [one for one in found.candidates if one.strength > taken.strength]
    assert not any(one.not_worse_than(best) for one in worse)


def test_it_is_the_same_again_and_stops_when_told():
    features, labels = samples()
    first, second = (fit_logistic(features, labels, 3, seed=1) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert fit_logistic(features, labels, 3, stop=lambda: True) is None


def test_of_many_samples_some_choose_and_all_are_solved_for(monkeypatch):
    features, labels = samples(count=300)
    monkeypatch.setattr(logistic_regression, "CHOOSE_FROM", 60)
    monkeypatch.setattr(logistic_regression, "ONE_FOLD_FROM", 100)
    found = fit_logistic(features, labels, 3)
    assert found.folds == 1 and len(found.candidates[0].losses) == 12
    whole = LogisticProblem.of(
        scale_features(features, next(s for s in SCALINGS if s.name == found.scaling)),
        labels,
        torch.ones(3),
        0.0,
    )
    assert len(whole.labels) == 300
    assert accuracy(found, features, labels) > 0.9
