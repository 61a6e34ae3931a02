"""The number of CPU threads, and how OpenMP threads wait.

torch is imported only inside functions, since `wait_passively` must run before it is loaded.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# variables for how OpenMP threads wait, and the value that makes them sleep
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

# FLOPs of a batch's forward pass for which one more thread pays off. Measured with
# torch 2.15 on two cores of a Xeon of 2.5 GHz, 13 networks from 0.4 to 58 GFLOP a batch: two
# threads were 1.09 to 1.33 times as fast below 2 GFLOP, 1.37 to 1.86 times from there on.
FLOPS_PER_THREAD = 1e9
# The same for spinning threads, which lose a time slice at each barrier if another program uses a
# core: about a second per step of any size. Below 20 GFLOP two were slower than one beside another
# program.
FLOPS_PER_SPINNING_THREAD = 1e10


def wait_passively() -> None:
    """Make OpenMP threads sleep while they wait, unless the user's environment sets this.

    OpenMP reads the setting when torch is loaded; afterwards this does nothing.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = _WAITING["OMP_WAIT_POLICY"]


def threads_spin() -> bool:
    """Whether OpenMP threads spin while they wait."""
    return not any(os.environ.get(name, "").upper() == value for name, value in _WAITING.items())


def processors() -> int:
    """Number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def threads_set_by() -> str:
    """What set the number of threads; "" if it is torch's default for this machine.

    The default is one per processor, or per core with hyper-threading.
    """
    import torch

    named = next((name for name in _COUNTS if os.environ.get(name)), "")
    usual = {processors(), max(1, processors() // 2)}
    return named or ("" if torch.get_num_threads() in usual else "torch.set_num_threads")


@dataclass(frozen=True)
class ThreadCount:
    """`most`: threads that a run on the CPU may use; `given`: what set it, "" if default."""

    most: int
    given: str = ""

    @classmethod
    def now(cls) -> "ThreadCount":
        """The threads of this process."""
        import torch

        return cls(torch.get_num_threads(), threads_set_by())

    def for_batches(self, operations: float | None) -> tuple[int, str]:
        """(threads, reason) for batches whose forward pass takes `operations` FLOPs.

        None: unknown, treated as a large batch.
        """
        if self.given:
            return self.most, f"set by {self.given}"
        if operations is None or self.most == 1:
            return self.most, "all available"
        worth = FLOPS_PER_SPINNING_THREAD if threads_spin() else FLOPS_PER_THREAD
        threads = min(self.most, max(1, int(operations / worth)))
        reason = f"one per {worth / 1e9:g} GFLOP of a batch, which takes {operations / 1e9:.2g}"
        return threads, reason if threads < self.most else "all available"

    def to_resume(self, before: int) -> int:
        """Threads for resuming a run that used `before`: as many, unless the user set a number.

        Not more than there are processors.
        """
        return self.most if self.given else min(before, processors())


def set_threads(count: int) -> None:
    """Set the number of torch's threads."""
    import torch

    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


@contextlib.contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Within the block torch and the BLAS of NumPy and SciPy use one thread, if `wanted`.

    Tiny operations are faster with one, and many times faster beside another busy program.
    """
    if not wanted:
        yield
        return
    from threadpoolctl import threadpool_limits

    with restored_threads(), threadpool_limits(1, "blas"):
        set_threads(1)
        yield


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """After the block torch's number of threads is restored."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(before)
