"""The probe keeps to its time and measures fairly; the clock here is made up."""

import pytest

from unfreeze.swav.throughput import SECONDS, StepConfig, StepTime, TuningScope, probe_ways

USUAL = StepConfig("bf16", "channels_last", 2, 0)
CPU = TuningScope("cpu", ("bf16", "fp32"), 2)
LONG = 10**9  # steps of a run that is never over


class Machine:
    """Steps that take `seconds(way, rows)`; `grain` is how late a step is cut off."""

    def __init__(self, seconds, *, build=0.0, grain=0.0, data=0.5):
        self.seconds, self.build, self.grain, self.data = seconds, build, grain, data
        self.now, self.calls, self.built = 100.0, [], set()

    def clock(self):
        return self.now

    def __call__(self, way, rows, limit):
        self.calls.append((way, rows))
        if way not in self.built:
            self.built.add(way)
            self.now += self.build
        took = self.seconds(way, rows)
        whole = took <= limit
        took = took if whole else limit + self.grain
        self.now += took
        return StepTime(self.data * took, (1 - self.data) * took, whole)

    def probed(self, scope=CPU, rows=(2, 64), steps=LONG):
        return probe_ways(USUAL, scope, self, rows=rows, steps=steps, clock=self.clock)


@pytest.mark.parametrize("seconds", [1e-4, 0.01, 0.1, 0.29, 0.31, 0.9, 7.0, 1e4])
@pytest.mark.parametrize("build", [0.0, 0.25])
def test_it_ends_in_time_however_slow_the_machine_is(seconds, build):
    machine = Machine(lambda way, rows: seconds, build=build, grain=0.05)
    found = machine.probed()
    assert machine.now - 100 <= SECONDS and found.seconds == machine.now - 100
    assert found.way == USUAL  # nothing is faster


def test_the_slow_fake_finishes_late_if_nobody_looks_at_the_clock():
    machine = Machine(lambda way, rows: 1.0)
    machine.clock = lambda: 0.0
    machine.probed(rows=(2, 2))
    assert machine.now - 100 > SECONDS


def test_a_terrible_number_of_threads_is_left_after_few_steps():
    machine = Machine(lambda way, rows: 30.0 if way.threads == 2 else 0.05)
    found = machine.probed()
    assert found.way.threads == 1 and "over" in found.reasons["threads"]
    assert sum(way.threads == 2 for way, _ in machine.calls) == 2
    assert "not measured" not in found.reasons["precision"]


def test_each_knob_goes_to_the_faster_way():
    def seconds(way, rows):
        slow = (way.precision == "bf16") + (way.layout == "channels_last")
        return 0.002 * rows * (1 + slow) / (1 + way.workers)

    found = Machine(seconds).probed()
    assert found.way == StepConfig("fp32", "contiguous", 1, 1)


def test_steps_are_made_long_enough_to_measure_but_no_longer_than_the_batch():
    machine = Machine(lambda way, rows: 0.001 * rows)
    assert machine.probed(rows=(2, 300)).rounds[0].rows in range(15, 40)
    assert Machine(lambda way, rows: 1e-4).probed().rounds[0].rows == 64


def test_the_first_step_of_a_way_counts_for_nothing_and_ways_alternate():
    machine = Machine(lambda way, rows: 0.04 if (way, rows) in machine.calls[:-1] else 0.4)
    found = machine.probed(rows=(2, 2))
    assert all(s.total < 0.05 for tried in found.rounds for s in tried.spent.values())
    order = [way.threads for way, _ in machine.calls[1:8]]
    assert order.count(2) >= 3 and order.count(1) >= 3 and order[2:6] != sorted(order[2:6])


def test_a_short_run_is_not_measured_for_longer_than_it_is_worth():
    machine = Machine(lambda way, rows: 0.05 / (1 + way.workers) / (3 - way.threads))
    found = machine.probed(steps=50)
    assert len(machine.calls) <= 3 and found.way == USUAL
    assert found.reasons["threads"].startswith("2: not measured, a run of 50 steps is")


def test_workers_are_not_started_where_views_cost_nothing():
    machine = Machine(lambda way, rows: 0.03, data=0.03)
    found = machine.probed()
    assert "data loading takes 3 %" in found.reasons["workers"]
    assert not any(way.workers for way, _ in machine.calls)


@pytest.mark.parametrize("seconds", [1e-3, 0.01, 0.03])
def test_small_steps_are_measured_to_the_end_within_the_budget(seconds):
    """Four threads, two precisions, layouts and workers to compare, each built in 20 ms."""
    machine = Machine(lambda way, rows: seconds, build=0.02)
    found = machine.probed(rows=(2, 2))
    assert not any("not measured" in why for why in found.reasons.values())
    assert machine.now - 100 <= SECONDS == 1.5 and not found.short_run


def test_a_short_run_says_that_a_longer_one_would_measure_more():
    machine = Machine(lambda way, rows: 0.02)
    assert machine.probed(steps=100).short_run
    assert not Machine(lambda way, rows: 0.02).probed().short_run
    slow = Machine(lambda way, rows: 2.0)  # nothing ends in time, but that is not the run's length
    assert not slow.probed().short_run and not slow.probed().rounds
