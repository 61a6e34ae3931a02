"""Processes that are watched: one that dies or hangs costs one task, whatever it is."""

import os
import pickle
import signal
import subprocess
import time
from collections import deque

import numpy as np
import pytest

from unfreeze.data.supervised import Lost, supervised


def doubled(task):
    return 2 * task


def doubtful(task):
    if task == "exit":
        os._exit(3)
    if task == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "hang":
        time.sleep(600)
    if task == "memory":
        try:
            return len(bytearray(8 * 2**30))
        except MemoryError:
            return "refused"
    if task == "raise":
        raise ValueError("a bug of ours")
    return task


def several(task):
    """Three answers each, with or without an end in between."""
    yield task, 0
    yield task, 1
    if task == "exit":
        os._exit(3)
    if task == "hang":
        time.sleep(600)
    yield task, 2


class Sent:
    def __init__(self, arrays):
        self.arrays = arrays

    def __call__(self, place):
        return self.arrays[place][::-1]


def run(tasks, work=doubtful, workers=2, seconds=20.0, memory=0):
    return dict(supervised(work, tasks, workers, seconds=seconds, memory=memory))


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_every_task_is_done_once(workers):
    done = list(supervised(doubled, range(40), workers, seconds=20))
    assert sorted(done) == [(n, 2 * n) for n in range(40)]
    assert list(supervised(doubled, [], workers, seconds=20)) == []


@pytest.mark.parametrize("how", ["exit", "crash"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_dies_costs_one_task(how, workers):
    tasks = [*range(12), how, *range(12, 30)]
    done = run(tasks, workers=workers)
    lost = done.pop(how)
    assert isinstance(lost, Lost) and lost.kind == "crashed"
    assert ("signal 11" if how == "crash" else "exit code 3") in lost.detail
    assert done == {n: n for n in range(30)}


def test_one_that_hangs_is_ended_in_time_and_costs_one_task():
    began = time.monotonic()
    done = run([*range(5), "hang", *range(5, 20)], seconds=1.0)
    assert time.monotonic() - began < 15
    assert done.pop("hang").kind == "hung"
    assert done == {n: n for n in range(20)}


def test_many_deaths_in_a_row():
    tasks = [("exit" if n % 3 == 0 else n) for n in range(9)]
    done = list(supervised(doubtful, tasks, 2, seconds=20))
    assert [answer.kind for task, answer in done if task == "exit"] == ["crashed"] * 3
    assert sorted(task for task, _ in done if task != "exit") == [1, 2, 4, 5, 7, 8]


def test_memory_is_bounded():
    assert run(["memory", 1], memory=2 * 2**30) == {"memory": "refused", 1: 1}


def test_a_bug_is_raised_here():
    with pytest.raises(ValueError, match="a bug of ours"):
        run([1, "raise", 2])


def test_a_task_may_have_several_answers_and_each_is_watched():
    found = {}
    for task, answer in supervised(several, [0, "exit", 1, "hang", 2], 2, seconds=1.0):
        found.setdefault(task, []).append(answer)
    whole = {task: [(task, 0), (task, 1), (task, 2)] for task in range(3)}
    kinds = {task: found[task].pop().kind for task in ("exit", "hang")}
    assert kinds == {"exit": "crashed", "hang": "hung"}
    assert found == whole | {task: [(task, 0), (task, 1)] for task in kinds}


@pytest.mark.parametrize("ahead", [1, 8])
def test_tasks_that_come_up_on_the_way_are_done(ahead):
    todo, done = deque([1]), []
    for task, answer in supervised(doubled, todo, 2, seconds=20, ahead=ahead):
        done.append(answer)
        if task < 50:
            todo.extend([answer, 100])
    assert done.count(200) == 6 and sorted(set(done)) == [2, 4, 8, 16, 32, 64, 128, 200]


def test_who_takes_an_answer_slowly_lets_no_process_hang():
    for task, answer in supervised(doubled, range(12), 1, seconds=0.5, ahead=4):
        assert answer == 2 * task
        time.sleep(0.6 if task in (3, 5) else 0)


def test_arrays_travel_whole_and_can_be_written_to():
    arrays = [
        np.arange(3_000_000, dtype=np.uint8).reshape(1000, 1000, 3),
        np.zeros((0, 5), np.float32),
        np.arange(24).reshape(4, 6)[:, ::2],
        np.arange(24).reshape(4, 6).T,
    ]
    places = range(len(arrays))
    found = dict(supervised(Sent(arrays), places, 1, seconds=20))
    for place in places:
        assert np.array_equal(found[place], arrays[place][::-1])
        found[place][...] = 0


def test_work_that_cannot_travel_is_said_at_once():
    with pytest.raises((pickle.PicklingError, AttributeError)):
        list(supervised(lambda task: task, [1], 1, seconds=20))


def test_leaving_early_leaves_nothing_behind():
    watched = supervised(doubtful, [1, "hang", "hang", "hang"], 2, seconds=600)
    next(watched)
    watched.close()
    asked = ["pgrep", "-P", str(os.getpid()), "-f", "serving import serve"]
    assert subprocess.run(asked, capture_output=True, text=True).stdout == ""
