import os
import signal
import threading

import pytest

from unfreeze.runtime.signals import ending_interrupts, stop_requests


def test_the_first_signal_asks_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop and stop.name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), stop_requests():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_other_threads_are_left_alone():
    seen = []

    def work():
        with stop_requests() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_being_ended_is_an_interruption(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), ending_interrupts():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before
