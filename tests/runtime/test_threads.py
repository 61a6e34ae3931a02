"""Threads: asleep while they wait, as many as a batch is worth, given back afterwards."""

import os
import subprocess
import sys

import pytest
import torch

from unfreeze.runtime import threads
from unfreeze.runtime.threads import ThreadCount, restored_threads, set_threads

FORGET = [*threads._COUNTS, *threads._WAITING]


@pytest.fixture
def unset(monkeypatch):
    """An environment in which nobody said anything about threads."""
    for name in FORGET:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_threads_wait_passively_where_torch_is_not_loaded_yet(unset):
    unset.delitem(sys.modules, "torch")
    threads.wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and not threads.threads_spin()


def test_it_is_too_late_where_torch_is_loaded(unset):
    threads.wait_passively()
    assert "OMP_WAIT_POLICY" not in os.environ and threads.threads_spin()


@pytest.mark.parametrize(
    ("name", "value", "spinning"),
    [
        ("OMP_WAIT_POLICY", "active", True),
        ("OMP_WAIT_POLICY", "passive", False),
        ("GOMP_SPINCOUNT", "1000", True),
        ("GOMP_SPINCOUNT", "0", False),
        ("KMP_BLOCKTIME", "0", False),
    ],
)
def test_what_the_user_set_stays(unset, name, value, spinning):
    unset.delitem(sys.modules, "torch")
    unset.setenv(name, value)
    threads.wait_passively()
    found = {n: os.environ[n] for n in threads._WAITING if n in os.environ}
    assert found == {name: value} and threads.threads_spin() == spinning


@pytest.mark.skipif(sys.platform != "linux", reason="it is GNU's OpenMP that shows its settings")
@pytest.mark.parametrize("first", ["unfreeze", "unfreeze.cli.main"])
def test_openmp_itself_heeds_it(first):
    env = {n: v for n, v in os.environ.items() if n not in FORGET} | {"OMP_DISPLAY_ENV": "true"}
    code = f"import {first}, sys; assert 'torch' not in sys.modules; import torch"
    said = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in said


def test_a_small_batch_takes_one_thread_and_a_large_one_all(unset):
    unset.setenv("OMP_WAIT_POLICY", "PASSIVE")
    free = ThreadCount(8)
    assert [free.for_batches(work * 1e9)[0] for work in (0.1, 1.9, 2, 3.5, 100)] == [1, 1, 2, 3, 8]
    assert free.for_batches(0.1e9)[1] == "one per 1 GFLOP of a batch, which takes 0.1"
    assert free.for_batches(100e9)[1] == free.for_batches(None)[1] == "all available"
    assert free.for_batches(None)[0] == 8
    unset.delenv("OMP_WAIT_POLICY")  # they spin: only a large batch is worth that
    assert [free.for_batches(work * 1e9)[0] for work in (3.5, 19, 20, 100)] == [1, 1, 2, 8]


def test_a_number_that_somebody_gave_stays():
    assert ThreadCount(3, "OMP_NUM_THREADS").for_batches(1.0) == (3, "set by OMP_NUM_THREADS")
    assert ThreadCount(3, "OMP_NUM_THREADS").to_resume(2) == 3


def test_a_resumed_run_has_the_threads_it_had(monkeypatch):
    monkeypatch.setattr(threads, "processors", lambda: 4)
    assert [ThreadCount(2).to_resume(before) for before in (1, 3, 16)] == [1, 3, 4]


def test_who_gave_the_number_is_known(unset):
    now = torch.get_num_threads()
    unset.setattr(threads, "processors", lambda: now)
    assert ThreadCount.now() == ThreadCount(now, "")
    unset.setattr(threads, "processors", lambda: 5 * now)
    assert ThreadCount.now() == ThreadCount(now, "torch.set_num_threads")
    unset.setenv("OMP_NUM_THREADS", "1")
    assert ThreadCount.now() == ThreadCount(now, "OMP_NUM_THREADS")


def test_threads_are_given_back_also_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), restored_threads():
        set_threads(before + 1)
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
