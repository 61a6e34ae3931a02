"""How many threads a process computes with, and how they wait for each other.

Nothing here imports torch before it is needed: `wait_passively` has to come first.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# variables that say how OpenMP's threads wait, and the value that makes them sleep
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

# Operations of a batch's forward pass that make one more thread worth its waiting. Measured with
# torch 2.15 on two cores of a Xeon of 2.5 GHz, 13 networks from 0.4 to 58 GFLOP a batch: two
# threads were 1.09 to 1.33 times as fast below 2 GFLOP, 1.37 to 1.86 times from there on.
WORTH = 1e9
# Threads that spin lose a time slice at each barrier where another program uses a core: about a
# second a step, whatever its size. Below 20 GFLOP two of them were slower than one beside one.
WORTH_SPINNING = 1e10


def wait_passively() -> None:
    """Make OpenMP's threads sleep while they wait, unless the user said how they are to wait.

    OpenMP reads that when torch is loaded: afterwards it is too late, and nothing is changed.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = _WAITING["OMP_WAIT_POLICY"]


def spinning() -> bool:
    """Whether OpenMP's threads use their cores while they wait."""
    return not any(os.environ.get(name, "").upper() == value for name, value in _WAITING.items())


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def threads_given() -> str:
    """Who set the number of threads; "" where it is torch's own choice for this machine.

    Torch takes one per processor, or for each of their cores where two share one.
    """
    import torch

    named = next((name for name in _COUNTS if os.environ.get(name)), "")
    usual = {processors(), max(1, processors() // 2)}
    return named or ("" if torch.get_num_threads() in usual else "torch.set_num_threads")


@dataclass(frozen=True)
class Threads:
    """Threads that a run on the CPU may use: `most`; `given` names who set that number."""

    most: int
    given: str = ""

    @classmethod
    def now(cls) -> "Threads":
        """Those of this process as it is."""
        import torch

        return cls(torch.get_num_threads(), threads_given())

    def for_batches(self, operations: float | None) -> tuple[int, str]:
        """(threads, reason) for batches whose forward pass takes so many operations.

        None: they could not be counted, so the batch is taken for a large one.
        """
        if self.given:
            return self.most, f"set by {self.given}"
        if operations is None or self.most == 1:
            return self.most, "all there are"
        worth = WORTH_SPINNING if spinning() else WORTH
        threads = min(self.most, max(1, int(operations / worth)))
        each = f"one per {worth / 1e9:g} GFLOP of a batch, which takes {operations / 1e9:.2g}"
        return threads, each if threads < self.most else "all there are"

    def to_resume(self, before: int) -> int:
        """Threads for a run that had `before`: as many, unless somebody set another number.

        Never more than there are processors.
        """
        return self.most if self.given else min(before, processors())


def set_threads(count: int) -> None:
    """Compute with so many threads from now on."""
    import torch

    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


@contextlib.contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Within the block torch and the BLAS of NumPy and SciPy have one thread, where `wanted`.

    Tiny operations are faster so, and beside another busy program many times faster.
    """
    if not wanted:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threads_kept(), threadpool_limits(1, "blas"):
        set_threads(1)
        yield


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """After the block torch has as many threads as before."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(before)
