import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unfreeze.swav import sinkhorn


def paper(scores, epsilon, iterations):
    """Sinkhorn-Knopp as written in the paper, float64: Q [K, B], marginals 1/K and 1/B."""
    C = scores.astype(np.longdouble)
    Q = np.exp(C.T / epsilon)
    Q /= Q.sum()
    K, B = Q.shape
    for _ in range(iterations):
        Q /= Q.sum(1, keepdims=True)
        Q /= K
        Q /= Q.sum(0, keepdims=True)
        Q /= B
    return (Q * B).T.astype(np.float64)


def cosines(B, K, seed=0, d=16):
    generator = torch.Generator().manual_seed(seed)
    Z = F.normalize(torch.randn(B, d, generator=generator, dtype=torch.float64), dim=1)
    C = F.normalize(torch.randn(K, d, generator=generator, dtype=torch.float64), dim=1)
    return Z @ C.T


@pytest.mark.parametrize("K", [7, 100, 3000])
@pytest.mark.parametrize("epsilon", [0.005, 0.03, 0.05])
def test_codes_equal_the_papers(K, epsilon):
    scores = cosines(64, K)
    expected = paper(scores.numpy(), epsilon, 3)
    exact = sinkhorn(scores, epsilon=epsilon)
    assert np.abs(exact.numpy() - expected).max() < 1e-10
    single = sinkhorn(scores.float(), epsilon=epsilon)
    assert single.dtype == torch.float32
    assert np.abs(single.numpy() - expected).max() < 2e-5


@pytest.mark.parametrize("block", [1, 3000, 7 * 300])
def test_codes_of_many_rows_taken_in_blocks_equal_the_papers(monkeypatch, block):
    # the module, which its function of the same name hides
    monkeypatch.setattr(sys.modules["unfreeze.swav.sinkhorn"], "_BLOCK", block)
    scores = cosines(64, 300)
    kept = scores.clone()
    expected = paper(scores.numpy(), 0.05, 3)
    assert np.abs(sinkhorn(scores).numpy() - expected).max() < 1e-10
    assert torch.equal(scores, kept)  # the scores themselves are left as they are


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3, 0.05, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_sum_to_one_and_nothing_overflows(epsilon, dtype):
    codes = sinkhorn(cosines(32, 50).to(dtype), epsilon=epsilon)
    assert codes.dtype == torch.float32 and torch.isfinite(codes).all()
    assert torch.allclose(codes.sum(1), torch.ones(32), atol=1e-5)


def test_many_iterations_share_the_prototypes_equally():
    codes = sinkhorn(cosines(64, 8), epsilon=0.05, iterations=200)
    assert torch.allclose(codes.sum(0), torch.full((8,), 8.0, dtype=torch.float64), atol=1e-6)


def test_no_prototype_dies_when_all_images_look_alike():
    scores = torch.full((16, 10), 0.9) + 1e-3 * torch.randn(16, 10)
    scores[:, 3] = -1.0  # nobody is near this one
    assert sinkhorn(scores, epsilon=0.01)[:, 3].sum() > 0.5


def test_codes_carry_no_gradient():
    assert not sinkhorn(cosines(4, 3).requires_grad_()).requires_grad
