"""Losses beside PyTorch's and the formulas of the paper, in float64."""

import pytest
import torch
import torch.nn.functional as F

from unfreeze.errors import UsageError
from unfreeze.tasks.multilabel.losses import (
    FOCUS,
    HIGHEST,
    MARGIN,
    asymmetric,
    bce,
    loss_function,
    positive_weights,
)


@pytest.fixture
def case():
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, 6, generator=draw, dtype=torch.float64)
    return logits, (torch.rand(40, 6, generator=draw) < 0.3).double()


def test_bce_is_pytorchs(case):
    logits, targets = case
    expected = F.binary_cross_entropy(logits.sigmoid(), targets, reduction="none")
    assert torch.allclose(bce(logits, targets, None), expected)
    weights = torch.arange(1.0, 7, dtype=torch.float64)
    weighted = bce(logits, targets, weights)
    assert torch.allclose(weighted, expected * (1 + targets * (weights - 1)))


def test_the_asymmetric_loss_is_that_of_the_paper(case):
    logits, targets = case
    p = logits.sigmoid()
    pm = torch.where(p > MARGIN, p - MARGIN, torch.zeros_like(p))
    expected = -(targets * p.log() + (1 - targets) * pm**FOCUS * (1 - pm).log())
    assert torch.allclose(asymmetric(logits, targets, None), expected)
    easy = torch.full((1, 1), -4.0)  # a probability below the margin
    assert asymmetric(easy, torch.zeros(1, 1), None).item() == 0


@pytest.mark.parametrize("name", ["bce", "asymmetric"])
def test_extreme_outputs_have_finite_losses_and_gradients(name):
    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    losses = loss_function(name)(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), None)
    losses.sum().backward()
    assert losses.isfinite().all() and logits.grad.isfinite().all()


def test_weights_are_the_images_without_a_label_by_those_with_it():
    targets = torch.zeros(200, 3)
    targets[:100, 0], targets[:20, 1], targets[:1, 2] = 1, 1, 1
    targets[150:, 1] = torch.nan  # unknown
    assert positive_weights(targets, "none") == []
    assert positive_weights(targets, "balanced") == [1.0, 130 / 20, HIGHEST]
    assert positive_weights(targets, "sqrt") == pytest.approx([1.0, (130 / 20) ** 0.5, 10.0])


def test_other_names_are_refused():
    with pytest.raises(UsageError, match="no --loss dice") as raised:
        loss_function("dice")
    assert "bce, asymmetric" in raised.value.next_step
