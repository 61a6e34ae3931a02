"""Starts and stops the worker processes of the data loader, and reports lost workers.

Workers ignore signals; the training process handles them. A lost worker raises between two steps,
never inside one, so the state of the training is consistent then.
"""

import contextlib
import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from multiprocessing import resource_tracker
from pickle import PicklingError
from typing import Any

import cv2
from torch.utils.data._utils import signal_handling

from unfreeze.errors import ResourceError
from unfreeze.runtime.signals import exit_on_parent_sigterm, signals_blocked

WORKER_LOST_MESSAGE = "DataLoader worker (pid"  # beginning of torch's message about a dead worker


# no memory, processes or semaphores; or the dataset cannot be pickled
_NO_START = (
    *(OSError, ImportError, RuntimeError, AssertionError),
    *(PicklingError, TypeError, AttributeError),
)


class NoWorkers(Exception):
    """No worker can be started; the message says why."""


def cannot_start_workers() -> str:
    """Why this process cannot start workers; "" if it can."""
    if multiprocessing.current_process().daemon:
        return "A daemon process cannot start worker processes"
    return ""


def start_method() -> str | None:
    """The start method of workers: that of the program if set, else fork on Linux.

    Forked workers start in milliseconds and need no `if __name__ == "__main__"` in scripts. They
    use one thread and never touch a GPU.
    """
    method = multiprocessing.get_start_method(allow_none=True)
    return "fork" if method is None and sys.platform == "linux" else method


@contextlib.contextmanager
def running_workers(loader: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """The batches of a torch loader; its workers run until the block ends.

    NoWorkers if they cannot be started; ResourceError if one of them is lost later.
    """
    with _defer_worker_errors():
        batches = _start(loader)
        workers = list(batches._workers)
        try:
            yield _batches_with_errors(batches, workers)
        finally:
            batches._shutdown_workers()  # asks them to exit, and waits for a while
            for worker in workers:
                if worker.is_alive():
                    worker.kill()


def _start(loader: Iterable[Any]) -> Any:
    if multiprocessing.get_start_method(allow_none=True) != "fork":
        resource_tracker.ensure_running()  # started later, it would unblock signals
    try:
        with _hide_main_script(), signals_blocked(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error", UserWarning)  # reported below
            return iter(loader)
    except _NO_START as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NoWorkers(f"Worker processes cannot be started ({reason})") from error


def _batches_with_errors(batches: Iterator[Any], workers: list[Any]) -> Generator[Any]:
    first = True
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError) as error:  # the other end of the pipe is closed
            raise worker_lost_error() from error
        except RuntimeError as error:
            if not is_worker_lost(error):
                raise
            codes = [worker.exitcode for worker in workers if worker.exitcode]
            if first and any(code > 0 for code in codes):  # it printed its own error
                raise NoWorkers("Worker processes exit at startup") from error
            raise worker_lost_error() from error
        yield batch
        first = False


def is_worker_lost(error: BaseException) -> bool:
    """Whether this is torch's error for a dead worker."""
    return isinstance(error, RuntimeError) and str(error).startswith(WORKER_LOST_MESSAGE)


def worker_lost_error() -> ResourceError:
    """The error for a dead worker."""
    return ResourceError(
        "A data loading worker was killed; the last checkpoint is intact.",
        "It probably ran out of memory (in a container --shm-size counts, too): use fewer "
        "--workers (or 0), and continue with --resume.",
    )


def worker_init(worker: int) -> None:
    """Initialises a worker process (`worker_init_fn`)."""
    cv2.setNumThreads(1)
    exit_on_parent_sigterm()


@contextlib.contextmanager
def _hide_main_script() -> Iterator[None]:
    """Prevents processes that are spawned within the block from importing the main script.

    They do not need it, and a script without `if __name__ == "__main__"` would run again.
    """
    main = sys.modules["__main__"]
    hidden = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    for name in hidden:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


@contextlib.contextmanager
def _defer_worker_errors() -> Iterator[None]:
    """Within the block a dead worker raises only when a batch is requested.

    The SIGCHLD handler of torch raises at any line of the main thread, also inside an update.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    torch_set_it = signal_handling._SIGCHLD_handler_set
    signal_handling._SIGCHLD_handler_set = True  # so that torch sets no handler
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", "") == signal_handling.__name__:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # set by another loader of this program
    try:
        yield
    finally:
        signal_handling._SIGCHLD_handler_set = torch_set_it
        if signal.getsignal(signal.SIGCHLD) != handler:
            signal.signal(signal.SIGCHLD, handler)
