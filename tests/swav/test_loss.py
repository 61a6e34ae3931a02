import numpy as np
import pytest
import torch

from unfreeze.errors import UsageError
from unfreeze.swav import sinkhorn, swapped_prediction_loss


def by_hand(scores, codes, assign, temperature):
    total = 0.0
    for Q, i in zip(codes, assign, strict=True):
        for v, C in enumerate(scores):
            if v != i:
                x = C.astype(np.longdouble) / temperature
                log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
                total += -(Q * log_p).sum(1).mean() / (len(scores) - 1)
    return float(total / len(assign))


@pytest.mark.parametrize("K", [7, 300, 3000])
@pytest.mark.parametrize("assign", [(0, 1), (1,), (0, 1, 2)])
def test_loss_and_gradient_equal_a_float64_computation(K, assign):
    generator = torch.Generator().manual_seed(K)
    raw = [torch.rand(16, K, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(4)]
    codes = [sinkhorn(raw[i]) for i in assign]
    expected = by_hand([s.numpy() for s in raw], [c.numpy() for c in codes], assign, 0.1)
    exact = [s.clone().requires_grad_() for s in raw]
    loss = swapped_prediction_loss(exact, codes, assign, temperature=0.1)
    loss.backward()
    assert abs(loss.item() / expected - 1) < 1e-12
    single = [s.float().requires_grad_() for s in raw]
    low = swapped_prediction_loss(single, [c.float() for c in codes], assign, temperature=0.1)
    low.backward()
    assert abs(low.item() / expected - 1) < 1e-5
    for v, (a, b) in enumerate(zip(exact, single, strict=True)):
        if a.grad is None:
            assert assign == (v,) and b.grad is None  # nobody predicts from this view
            continue
        assert (a.grad - b.grad).abs().max() <= 1e-5 * a.grad.abs().max()


def test_it_starts_at_ln_k_for_flat_predictions():
    scores = [torch.zeros(8, 50)] * 3
    codes = [torch.full((8, 50), 1 / 50)] * 2
    assert swapped_prediction_loss(scores, codes, (0, 1)).item() == pytest.approx(np.log(50))


def test_half_precision_scores_are_computed_in_float32():
    scores = [torch.rand(4, 9).bfloat16() for _ in range(2)]
    loss = swapped_prediction_loss(scores, [sinkhorn(s) for s in scores], (0, 1))
    assert loss.dtype == torch.float32


def test_one_view_is_refused():
    with pytest.raises(UsageError, match="two views"):
        swapped_prediction_loss([torch.zeros(2, 3)], [torch.zeros(2, 3)], (0,))
