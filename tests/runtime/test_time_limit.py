"""A time limit leaves room for a step and for the end, as both were measured."""

import subprocess
import sys
import time

import pytest

from unfreeze.errors import UsageError
from unfreeze.runtime.signals import StopRequest, stop_requests
from unfreeze.runtime.time_limit import TimeLimit, parse_duration, process_start


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("1D12H", 129_600),
        # SLURM's six ways of saying it
        ("45", 2700),
        ("0.5", 30),
        ("30:15", 1815),
        ("12:00:00", 43_200),
        ("1-12", 129_600),
        ("1-12:30", 131_400),
        ("1-12:00:00", 129_600),
    ],
)
def test_times_in_every_spelling(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0m", "soon", "-5m", "1-", "1:2:3:4", "5x", "1..5h", "1-2-3", "m", "00:00"]
)
def test_what_is_no_time_is_refused_with_an_example(text):
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert "1-12:00:00" in caught.value.next_step


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def steps_made(limit, step, save, *, validation=0.0):
    """Seconds since the start at which a run of equal steps has ended, and how many it made."""
    clock = Clock()
    deadline = TimeLimit(limit, clock.now, clock)
    for made in range(1, 100_000):
        clock.now += step
        if deadline.unmeasured or deadline.reached(step):
            with deadline.timing("save"):
                clock.now += save
        if made == 1 and validation:
            with deadline.timing("validation"):
                clock.now += validation
        if deadline.reached(step):
            with deadline.timing("save"):
                clock.now += save
            return clock.now - 1000.0, made
    raise RuntimeError("never")


@pytest.mark.parametrize("limit", [60, 600, 7200])
@pytest.mark.parametrize("step, save", [(0.1, 0.5), (3.0, 1.0), (1.0, 12.0)])
def test_the_run_has_ended_before_the_limit_and_wasted_little(limit, step, save):
    ended, _ = steps_made(limit, step, save)
    assert ended <= limit
    assert limit - ended <= 2 * step + 3 * save + 5.1


def test_the_parts_of_the_end_add_up():
    alone, _ = steps_made(600, 1.0, 2.0)
    with_validation, _ = steps_made(600, 1.0, 2.0, validation=30.0)
    assert 55 <= alone - with_validation <= 65


def test_a_start_that_is_late_already_still_makes_a_step():
    assert steps_made(5, 7.0, 1.0)[1] == 1


def test_a_slow_step_is_remembered_for_a_while():
    clock = Clock()
    deadline = TimeLimit(100, clock.now, clock)
    clock.now += 70
    assert not deadline.reached(1.0)
    assert not deadline.reached(20.0)  # 70 + 20 + 5 is below 100
    clock.now += 10
    assert deadline.reached(1.0)  # 80 + 18 + 5 is not
    for _ in range(30):
        quiet = deadline.reached(1.0)
    assert not quiet


def test_no_limit_is_never_reached():
    deadline = TimeLimit.of(None)
    assert not deadline.unmeasured and not deadline.reached(1e9)


def test_the_deadline_asks_through_the_stop_request_and_a_signal_keeps_its_name():
    with stop_requests() as stop:
        stop.at(TimeLimit(), 1.0)
        assert not stop
        stop.at(TimeLimit(1.0, time.monotonic() - 10), 1.0)
        assert stop and stop.name == "--time-limit"
    asked = StopRequest()
    asked.name = "SIGTERM"
    asked.at(TimeLimit(1.0, time.monotonic() - 10), 1.0)
    assert asked.name == "SIGTERM"


def test_time_counts_from_the_start_of_the_process():
    began = time.monotonic()
    code = (
        "import time; time.sleep(0.5)\n"
        "from unfreeze.runtime.time_limit import process_start\n"
        "print(process_start())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert abs(float(said.stdout) - began) < 0.3
    assert process_start() < time.monotonic()
