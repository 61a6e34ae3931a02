"""The processes that read images for a training: how they start, how they end, and without them.

They leave every signal to the training. One that is lost is an error between two steps, never
inside one: what is in memory then is whole.
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
from unfreeze.runtime.signals import ended_by_starter_only, signals_held

LOST = "DataLoader worker (pid"  # how torch's message begins where a worker is gone


# no memory, processes or semaphores; or what workers need cannot be sent to them
_NO_START = (
    *(OSError, ImportError, RuntimeError, AssertionError),
    *(PicklingError, TypeError, AttributeError),
)


class NoWorkers(Exception):
    """No worker can be started; the message says why."""


def no_workers_here() -> str:
    """Why this process cannot have workers; "" where it can."""
    if multiprocessing.current_process().daemon:
        return "A daemon process cannot start worker processes"
    return ""


def start_method() -> str | None:
    """How workers are started: as the program chose; else by fork on Linux, whatever the Python.

    A forked worker needs no `if __name__ == "__main__"` in a script and starts in milliseconds. It
    computes in one thread and never touches a GPU.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    return "fork" if chosen is None and sys.platform == "linux" else chosen


@contextlib.contextmanager
def started(loader: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """The batches of a torch loader whose workers run within the block.

    NoWorkers where they cannot be started; ResourceError where one of them is lost later.
    """
    with _deaths_wait():
        batches = _begun(loader)
        workers = list(batches._workers)
        try:
            yield _watched(batches, workers)
        finally:
            batches._shutdown_workers()  # asks them to end, and waits a while
            for worker in workers:
                if worker.is_alive():
                    worker.kill()


def _begun(loader: Iterable[Any]) -> Any:
    if multiprocessing.get_start_method(allow_none=True) != "fork":
        resource_tracker.ensure_running()  # it would let signals through again
    try:
        with _script_hidden(), signals_held(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error", UserWarning)  # said below
            return iter(loader)
    except _NO_START as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise NoWorkers(f"Worker processes cannot be started ({said})") from error


def _watched(batches: Iterator[Any], workers: list[Any]) -> Generator[Any]:
    first = True
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError) as error:  # its other end is gone
            raise worker_lost() from error
        except RuntimeError as error:
            if not is_lost(error):
                raise
            codes = [worker.exitcode for worker in workers if worker.exitcode]
            if first and any(code > 0 for code in codes):  # it said itself what was wrong
                raise NoWorkers("Worker processes exit at startup") from error
            raise worker_lost() from error
        yield batch
        first = False


def is_lost(error: BaseException) -> bool:
    """Whether this is torch's word for a worker that is gone."""
    return isinstance(error, RuntimeError) and str(error).startswith(LOST)


def worker_lost() -> ResourceError:
    """The error where a process that reads images is gone."""
    return ResourceError(
        "A data loading worker was killed; the last checkpoint is intact.",
        "It probably ran out of memory (in a container --shm-size counts, too): use fewer "
        "--workers (or 0), and continue with --resume.",
    )


def in_a_worker(worker: int) -> None:
    """What a worker does first."""
    cv2.setNumThreads(1)
    ended_by_starter_only()


@contextlib.contextmanager
def _script_hidden() -> Iterator[None]:
    """Processes that are spawned within the block do not run the program's script again.

    They need nothing of it, and a script without `if __name__ == "__main__"` would start anew.
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
def _deaths_wait() -> Iterator[None]:
    """Within the block the death of a worker is an error where a batch is asked for.

    Torch's own handler raises it from any line of the main thread, also inside an update.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    torch_set_it = signal_handling._SIGCHLD_handler_set
    signal_handling._SIGCHLD_handler_set = True  # so that it sets none
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", "") == signal_handling.__name__:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # of another loader of this program
    try:
        yield
    finally:
        signal_handling._SIGCHLD_handler_set = torch_set_it
        if signal.getsignal(signal.SIGCHLD) != handler:
            signal.signal(signal.SIGCHLD, handler)
