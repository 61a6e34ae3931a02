"""A teacher's principal components beside scikit-learn's, and the loss beside its equation."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from unfreeze.tasks.distillation.targets import PrincipalAxes
from unfreeze.tasks.distillation.task import distillation_loss


def features(count=60, width=12):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mixing + 5


def test_targets_are_the_unit_scores_of_principal_component_analysis():
    X = features()
    targets = PrincipalAxes.of([X], 5).targets([X]).numpy()
    scores = PCA(5, svd_solver="full").fit_transform(X.double().numpy())
    scores /= np.linalg.norm(scores, axis=1, keepdims=True)
    signs = np.sign((scores * targets).sum(axis=0))  # an axis has no direction of its own
    assert np.abs(scores * signs - targets).max() < 1e-5


def test_features_in_parts_are_the_whole():
    X = features()
    whole, parts = PrincipalAxes.of([X], 5), PrincipalAxes.of([X[:7], X[7:30], X[30:]], 5)
    cosines = (whole.axes * parts.axes).sum(dim=0).abs()
    assert torch.allclose(cosines, torch.ones(5), atol=1e-6)
    assert torch.allclose(whole.targets([X]), whole.targets([X[:7], X[7:]]), atol=1e-5)


def test_more_axes_than_the_features_have_are_zero():
    X = features(4)
    principal = PrincipalAxes.of([X], 8)
    assert (principal.axes[:, 3:] == 0).all() and (principal.axes[:, :3] != 0).any(dim=0).all()
    # four points span three axes: nothing is lost
    centred = X - X.mean(dim=0)
    expected = torch.nn.functional.normalize(centred, dim=1)
    targets = principal.targets([X])
    assert torch.allclose(targets @ targets.T, expected @ expected.T, atol=1e-5)


def test_a_teacher_that_sees_no_difference_teaches_nothing():
    X = torch.full((6, 4), 3.0)
    targets = PrincipalAxes.of([X], 2).targets([X])
    assert targets.isfinite().all() and (targets == 0).all()


def test_the_state_restores_the_axes():
    axes = PrincipalAxes.of([features()], 3)
    restored = PrincipalAxes.from_state(axes.state_dict())
    assert torch.equal(axes.targets([features()]), restored.targets([features()]))


@pytest.mark.parametrize("views", [1, 3])
def test_the_loss_is_one_minus_the_mean_cosine(views):
    generator = torch.Generator().manual_seed(1)
    P = torch.randn(views * 4, 5, generator=generator, dtype=torch.float64)
    T = torch.nn.functional.normalize(
        torch.randn(4, 5, generator=generator, dtype=torch.float64), dim=1
    )
    expected = np.mean(
        [
            1 - P[v * 4 + i].numpy() @ T[i].numpy() / np.linalg.norm(P[v * 4 + i])
            for v in range(views)
            for i in range(4)
        ]
    )
    assert distillation_loss(P, T, views).item() == pytest.approx(expected, abs=1e-12)
    assert distillation_loss(T.repeat(views, 1), T, views).item() == pytest.approx(0, abs=1e-12)
