"""Being asked to stop: the step under way is finished, the state saved, then the run ends."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from unfreeze.runtime.deadline import Deadline

ANOTHER = "a signal or the time limit in another process"
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


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


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block the first SIGINT, SIGTERM or SIGUSR1 only sets the request.

    A second SIGINT interrupts at once. Outside the main thread signals are left alone.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.name = signal.Signals(number).name

    present = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.signal(number, note) for number in present}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ending_interrupts() -> Iterator[None]:
    """Within the block SIGTERM and SIGUSR1 end like Ctrl-C: by KeyboardInterrupt.

    Where steps can be saved `stop_requests` takes over. Forked workers simply end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:
            os._exit(128 + number)
        raise KeyboardInterrupt

    present = [getattr(signal, name) for name in _NAMES[1:] if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in present}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
