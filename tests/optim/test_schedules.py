import numpy as np
import pytest

from unfreeze.optim.optimizer import schedule_lr, warmup_cosine


@pytest.mark.parametrize("warmup, start", [(10, 0.3), (0, 0.0), (1, 0.2)])
def test_every_step_equals_the_published_arrays(warmup, start):
    per_epoch, epochs, base, final = 7, 30, 4.8, 0.0048
    linear = np.linspace(start, base, per_epoch * warmup)
    t = np.arange(per_epoch * (epochs - warmup))
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * t / len(t)))
    expected = np.concatenate([linear, cosine])
    mine = [
        warmup_cosine(
            s,
            total=per_epoch * epochs,
            warmup=per_epoch * warmup,
            base=base,
            final=final,
            start=start,
        )
        for s in range(per_epoch * epochs)
    ]
    assert np.allclose(mine, expected, rtol=1e-12)


def test_the_cosine_ends_where_the_run_ends():
    last = schedule_lr("cosine", 99, total=100, warmup=0, base=1.0)
    assert last < 0.001


def test_steps_and_constants():
    rates = [schedule_lr("step", s, total=100, warmup=10, base=1.0) for s in (10, 49, 50, 75)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01])
    assert schedule_lr("constant", 99, total=100, warmup=0, base=0.5) == 0.5
