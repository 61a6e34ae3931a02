"""Being asked to stop: the step under way is finished, the state saved, then the run ends.

Schedulers signal every process of a job, terminals every process of a group: the processes that a
run starts leave all of that to the run.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from unfreeze.runtime.deadline import Deadline

ANOTHER = "a signal or the time limit in another process"
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
_AGAIN = 2.0  # seconds in which the same request comes twice: to a process and to its group
WORKERS_FIRST = 1.0  # seconds by which a signal may reach a run later than its workers
_GRACE = 10.0  # seconds that a worker lives on where nobody can tell who ends it


def spoken(number: int) -> str:
    """What people call a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def requests() -> list[signal.Signals]:
    """The signals that ask a process to end; not SIGHUP where `nohup` makes it ignored."""
    found = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    hangup = getattr(signal, "SIGHUP", None)
    deaf = hangup is not None and signal.getsignal(hangup) == signal.SIG_IGN
    return [number for number in found if not (deaf and number == hangup)]


class StopRequest:
    """Which signal asked, or that the time is up; "" while nothing did."""

    def __init__(self) -> None:
        self.name = ""

    def __bool__(self) -> bool:
        return bool(self.name)

    def at(self, deadline: Deadline, step_seconds: float) -> None:
        """Set the request where the deadline leaves no time for another step."""
        if deadline.reached(step_seconds) and not self:
            self.name = "--time-limit"

    def comes(self, seconds: float) -> bool:
        """Whether it is set, now or within so many seconds."""
        until = time.monotonic() + seconds
        while not self and time.monotonic() < until:
            time.sleep(0.02)
        return bool(self)


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block the first signal only sets the request.

    A second Ctrl-C interrupts at once. Outside the main thread signals are left alone.
    """
    request = StopRequest()
    if not _main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt(spoken(number))
        request.name = request.name or spoken(number)

    before = {number: signal.signal(number, note) for number in requests()}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Ending:
    """What a signal does to a command: it interrupts, until the command is `over`.

    Once there is an exit `code`, a signal ends the process with it.
    """

    def __init__(self) -> None:
        self.over = False
        self.code: int | None = None
        self._process, self._at = os.getpid(), -_AGAIN

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if os.getpid() != self._process:
            os._exit(128 + number)  # a forked worker that has no handler of its own yet
        if self.code is not None:
            os._exit(self.code)
        again = time.monotonic() - self._at < _AGAIN and number != signal.SIGINT
        if not self.over and not again:
            self._at = time.monotonic()
            raise KeyboardInterrupt(spoken(number))


@contextlib.contextmanager
def ending_interrupts(whole_process: bool = False) -> Iterator[Ending]:
    """Within the block every signal ends like Ctrl-C: by KeyboardInterrupt, with its name.

    Where steps can be saved `stop_requests` takes over. For a `whole_process` the handlers stay to
    its end, so that no late signal changes its exit code.
    """
    ending = Ending()
    if not _main_thread():
        yield ending
        return
    if whole_process:
        atexit.register(_ignore)  # the interpreter ends by taking its own handlers away
    before = {number: signal.signal(number, ending) for number in requests()}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            if not whole_process:
                signal.signal(number, handler)


def _ignore() -> None:
    for number in requests():
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Within the block this thread gets no signals; processes that it starts never get any."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows has no signals either
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, requests())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ended_by_starter_only() -> None:
    """In a worker that was started with `signals_held`: SIGTERM of who started it ends it."""
    starter = multiprocessing.parent_process()
    if starter is not None and hasattr(signal, "sigwait"):
        wait = threading.Thread(target=_wait_for_the_end, args=(starter.pid,), daemon=True)
        wait.start()


def _wait_for_the_end(starter: int | None) -> None:
    if hasattr(signal, "sigwaitinfo"):
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != starter:
            pass
    else:  # macOS does not tell who sent it
        signal.sigwait([signal.SIGTERM])
        time.sleep(_GRACE)
    os._exit(0)
