"""Stop signals: the current step is finished, a checkpoint saved, then the run ends.

Schedulers signal every process of a job, terminals every process of a group; worker processes
leave the handling to the run's main process.
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

from unfreeze.runtime.time_limit import TimeLimit

STOPPED_ELSEWHERE = "a signal or the time limit in another process"
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
_AGAIN = 2.0  # seconds in which a repeated signal counts as the same (to process and group)
SIGNAL_DELAY = 1.0  # seconds by which a signal may reach workers before the main process
_EXIT_DELAY = 10.0  # seconds before a worker exits where the sender of a signal is unknown


def signal_name(number: int) -> str:
    """The name of a signal for messages."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def stop_signals() -> list[signal.Signals]:
    """The stop signals; without SIGHUP if it is ignored (`nohup`)."""
    signals = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    hangup = getattr(signal, "SIGHUP", None)
    ignored = hangup is not None and signal.getsignal(hangup) == signal.SIG_IGN
    return [number for number in signals if not (ignored and number == hangup)]


class StopRequest:
    """A request to stop; `name` is the signal or `--time-limit`, "" without a request."""

    def __init__(self) -> None:
        self.name = ""

    def __bool__(self) -> bool:
        return bool(self.name)

    def at(self, deadline: TimeLimit, step_seconds: float) -> None:
        """Set the request if the deadline leaves no time for another step."""
        if deadline.reached(step_seconds) and not self:
            self.name = "--time-limit"

    def comes(self, seconds: float) -> bool:
        """Whether it is set now or within `seconds`; waits for it."""
        until = time.monotonic() + seconds
        while not self and time.monotonic() < until:
            time.sleep(0.02)
        return bool(self)


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block a signal only sets the request; a second Ctrl-C interrupts at once.

    Outside the main thread signals are not handled.
    """
    request = StopRequest()
    if not _main_thread():
        yield request
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt(signal_name(number))
        request.name = request.name or signal_name(number)

    previous = {number: signal.signal(number, on_signal) for number in stop_signals()}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class SignalHandler:
    """A signal handler that raises KeyboardInterrupt, until the command is `over`.

    Once the exit `code` is set, a signal ends the process with it.
    """

    def __init__(self) -> None:
        self.over = False
        self.code: int | None = None
        self._process, self._at = os.getpid(), -_AGAIN

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if os.getpid() != self._process:
            os._exit(128 + number)  # a forked worker without its own handler yet
        if self.code is not None:
            os._exit(self.code)
        again = time.monotonic() - self._at < _AGAIN and number != signal.SIGINT
        if not self.over and not again:
            self._at = time.monotonic()
            raise KeyboardInterrupt(signal_name(number))


@contextlib.contextmanager
def ending_interrupts(whole_process: bool = False) -> Iterator[SignalHandler]:
    """Within the block every stop signal raises KeyboardInterrupt with its name, like Ctrl-C.

    During training `stop_requests` replaces it. With `whole_process` the handlers stay installed
    until the process ends, so that a late signal does not change its exit code.
    """
    ending = SignalHandler()
    if not _main_thread():
        yield ending
        return
    if whole_process:
        atexit.register(_ignore_signals)  # the interpreter restores default handlers at exit
    previous = {number: signal.signal(number, ending) for number in stop_signals()}
    try:
        yield ending
    finally:
        for number, handler in previous.items():
            if not whole_process:
                signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Within the block stop signals are blocked in this thread and in processes it starts."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Within the block stop signals are only noted; their handlers are called at its end.

    For Python code that PyTorch calls from C++, such as dispatch modes on the meta device: an
    exception that a signal raises there can abort the process. Outside the main thread signals are
    not handled, so nothing changes.
    """
    if not _main_thread():
        yield
        return
    came: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in stop_signals()
        if signal.getsignal(number) is not None  # a handler that Python cannot restore
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for sent in came:
        handler = previous[signal.Signals(sent)]
        if callable(handler):
            handler(sent, None)
        elif handler == signal.SIG_DFL:
            os.kill(os.getpid(), sent)


def exit_on_parent_sigterm() -> None:
    """In a worker started within `signals_blocked`: exit on SIGTERM from the parent only."""
    starter = multiprocessing.parent_process()
    if starter is not None and hasattr(signal, "sigwait"):
        wait = threading.Thread(target=_exit_on_sigterm, args=(starter.pid,), daemon=True)
        wait.start()


def _exit_on_sigterm(starter: int | None) -> None:
    if hasattr(signal, "sigwaitinfo"):
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != starter:
            pass
    else:  # macOS does not provide the sender
        signal.sigwait([signal.SIGTERM])
        time.sleep(_EXIT_DELAY)
    os._exit(0)
