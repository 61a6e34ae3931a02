"""Isolates a call from the caller's torch and numpy settings, and restores them afterwards.

A notebook or program may have disabled gradients or changed the default dtype or device; these
settings must not affect a call, nor its settings the caller.
"""

import contextlib
import sys
from collections.abc import Iterator

import numpy as np

from unfreeze.runtime.threads import restored_threads


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Within the block torch and numpy have default settings; afterwards the caller's again.

    Covers gradients, default dtype and device, autocast, anomaly detection (we check for NaN
    ourselves), deterministic algorithms (kept, but only as warnings), the random state and the
    number of threads.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if "torch" in sys.modules:  # else there is nothing to restore
            _torch(stack)
        yield


@contextlib.contextmanager
def _outermost_autocast() -> Iterator[None]:
    """Within the block an autocast context clears torch's cache of cast weights when it ends.

    torch clears it only where the outermost context ends: within one of the caller's, each training
    step would compute with the first step's weights.
    """
    import torch

    depth = torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        for _ in range(depth):
            torch.autocast_increment_nesting()


def _torch(stack: contextlib.ExitStack) -> None:
    import torch

    stack.enter_context(restored_threads())
    cuda: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count()) if cuda else []))
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.enable_grad())
    stack.enter_context(torch.autograd.set_detect_anomaly(False))
    for kind in ("cpu", "cuda") if cuda else ("cpu",):
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    stack.enter_context(_outermost_autocast())
    if torch.get_default_dtype() != torch.float32:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
    if torch.get_default_device().type != "cpu":
        stack.enter_context(torch.device("cpu"))
    if torch.are_deterministic_algorithms_enabled():
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        stack.callback(torch.use_deterministic_algorithms, True, warn_only=warns)
        torch.use_deterministic_algorithms(True, warn_only=True)
