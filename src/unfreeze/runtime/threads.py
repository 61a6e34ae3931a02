"""How many threads a process computes with: who said so, and leaving it as it was found."""

import contextlib
import os
from collections.abc import Iterator

import torch

_SAID = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def threads_said(processors: int) -> str:
    """Who gave the number of threads; "" where it is torch's own choice for this machine.

    Torch takes one for each of the `processors`, or for each of their cores where two share one.
    """
    named = next((name for name in _SAID if os.environ.get(name)), "")
    usual = {processors, max(1, processors // 2)}
    return named or ("" if torch.get_num_threads() in usual else "torch.set_num_threads")


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """After the block torch has as many threads as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
