import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from unfreeze.runtime import signals
from unfreeze.runtime.signals import (
    StopRequest,
    ending_interrupts,
    signals_blocked,
    signals_deferred,
    stop_requests,
    stop_signals,
)

NAMES = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"]
EACH = pytest.mark.parametrize("name", NAMES)


@EACH
def test_the_first_signal_asks_and_the_handlers_come_back(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with stop_requests() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.name == name.replace("SIGINT", "Ctrl-C")
    assert signal.getsignal(number) is before


def test_the_first_of_several_is_named():
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    assert stop.name == "SIGHUP"


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), stop_requests():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_other_threads_are_left_alone():
    seen = []

    def work():
        with stop_requests() as stop, ending_interrupts():
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_hangup_that_nohup_ignores_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals() and signal.SIGTERM in stop_signals()
        with stop_requests() as stop, ending_interrupts():
            signal.raise_signal(signal.SIGHUP)
        assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


@EACH
def test_being_ended_is_an_interruption(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as caught, ending_interrupts():
        signal.raise_signal(number)
    assert caught.value.args == (name.replace("SIGINT", "Ctrl-C"),)
    assert signal.getsignal(number) is before


def test_the_same_request_twice_interrupts_once_and_a_later_one_again(monkeypatch):
    with ending_interrupts() as ending:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # to the process, and to its group
        monkeypatch.setattr(signals, "_AGAIN", 0.0)
        with pytest.raises(KeyboardInterrupt):  # the first may have been lost
            signal.raise_signal(signal.SIGTERM)
        ending.over = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)


def test_a_request_that_comes_soon_is_waited_for():
    stop = StopRequest()
    assert not stop.comes(0.01)
    threading.Timer(0.1, lambda: setattr(stop, "name", "SIGTERM")).start()
    assert stop.comes(20.0)


LATE = """
import os, signal, sys
from unfreeze.runtime.signals import ending_interrupts
with ending_interrupts(whole_process=True) as ending:
    ending.code = 3
class Last:
    def __del__(self, kill=os.kill, me=os.getpid()):
        kill(me, signal.SIGTERM)  # while the interpreter ends
if sys.argv[1] == "after":
    os.kill(os.getpid(), signal.SIGTERM)
kept = sys.last = Last()
sys.exit(3)
"""


@pytest.mark.parametrize("moment", ["after", "at the end"])
def test_a_late_signal_changes_no_exit_code(moment):
    assert subprocess.run([sys.executable, "-c", LATE, moment]).returncode == 3


def test_processes_that_start_while_signals_are_held_get_none():
    with signals_blocked():
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # waits, or it would end us
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        signal.sigwait([signal.SIGUSR1])
    for name in NAMES:
        child.send_signal(getattr(signal, name))
    time.sleep(0.2)
    assert child.poll() is None
    child.kill()
    assert child.wait() == -signal.SIGKILL


def test_signals_wait_for_the_end_of_a_block_and_then_have_their_handler():
    finished = []
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), ending_interrupts():
        with signals_deferred():
            signal.raise_signal(signal.SIGTERM)
            with signals_deferred():
                signal.raise_signal(signal.SIGTERM)
            finished.append(True)
        finished.append(False)  # never
    assert finished == [True]
    with stop_requests() as stop:
        with signals_deferred():
            signal.raise_signal(signal.SIGTERM)
            assert not stop
        assert stop.name == "SIGTERM"


def test_a_failing_block_restores_the_handlers():
    before = [signal.getsignal(number) for number in stop_signals()]
    with pytest.raises(ZeroDivisionError), signals_deferred():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in stop_signals()] == before


def test_a_signal_during_a_trace_interrupts_after_it():
    from unfreeze.models.build import build
    from unfreeze.models.shape_trace import trace_forward

    network, order = build("unfreeze/tiny"), []

    def signalled(*_):
        order.append("signal")
        signal.raise_signal(signal.SIGTERM)

    network.stage2.register_forward_pre_hook(signalled)
    network.head.register_forward_pre_hook(lambda *_: order.append("end"))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), ending_interrupts():
        trace_forward(network, (32, 32))
    assert order == ["signal", "end"]
