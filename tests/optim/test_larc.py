"""LARC against its definition in float64, and against torch's own SGD where they must agree."""

import copy

import pytest
import torch

from unfreeze.optim import larc
from unfreeze.swav import LARC


def by_definition(params, grads, momenta, *, lr, momentum, decay, trust=0.001, eps=1e-8):
    for p, g, m in zip(params, grads, momenta, strict=True):
        if p.norm() > 0 and g.norm() > 0:
            rate = trust * p.norm() / (g.norm() + decay * p.norm() + eps)
            g = (g + decay * p) * rate
        m.mul_(momentum).add_(g)
        p.sub_(lr * m)


@pytest.mark.parametrize("way", ["_one_by_one", "_together"])  # of a CPU, and of a GPU
@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_ten_steps_equal_the_definition(decay, way, monkeypatch):
    monkeypatch.setattr(larc, "_one_by_one", getattr(larc, way))
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5,), (2, 3, 3, 3), (7,)]
    start = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    start[3].zero_()  # a bias that begins at nothing: its first step is plain SGD
    mine = [p.clone().requires_grad_() for p in start]
    theirs, momenta = [p.clone() for p in start], [torch.zeros_like(p) for p in start]
    optimizer = LARC(mine, 0.3, momentum=0.9, weight_decay=decay)
    for _ in range(10):
        grads = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        for p, g in zip(mine, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        by_definition(theirs, grads, momenta, lr=0.3, momentum=0.9, decay=decay)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_a_tensor_at_zero_moves_as_plain_sgd():
    mine, theirs = torch.zeros(5, requires_grad=True), torch.zeros(5, requires_grad=True)
    a, b = LARC([mine], 0.1, weight_decay=0.5), torch.optim.SGD([theirs], 0.1, momentum=0.9)
    for p in (mine, theirs):
        p.grad = torch.arange(5.0)
    a.step()
    b.step()
    assert torch.equal(mine, theirs)


def test_what_has_no_gradient_stands_still_and_keeps_no_momentum():
    frozen, moving = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = LARC([frozen, moving], 0.1)
    moving.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(frozen, torch.ones(3)) and frozen not in optimizer.state
    assert not torch.equal(moving, torch.ones(3))


def test_its_state_resumes():
    def steps(optimizer, p, n):
        for k in range(n):
            p.grad = torch.full((3,), float(k + 1))
            optimizer.step()

    p = torch.ones(3, requires_grad=True)
    whole = LARC([p], 0.1)
    steps(whole, p, 2)
    q = p.detach().clone().requires_grad_()
    resumed = LARC([q], 0.1)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    steps(whole, p, 2)
    steps(resumed, q, 2)
    assert torch.equal(p, q)
