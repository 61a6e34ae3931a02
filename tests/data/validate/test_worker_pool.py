"""Processes that are watched: one that dies or hangs costs one task, whatever it is."""

import contextlib
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from unfreeze.data.validate import worker_pool as supervising
from unfreeze.data.validate.worker_pool import LostTask, run_in_workers

MARK = f"UNFREEZE_TEST_OF_{os.getpid()}"


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


def slowly(task):
    time.sleep(600 if task == "hang" else 0.5)
    return task


def threads(task):
    """How many threads OpenCV and OpenMP would take here."""
    import cv2

    return cv2.getNumThreads(), os.environ["OMP_NUM_THREADS"]


class Sent:
    def __init__(self, arrays):
        self.arrays = arrays

    def __call__(self, place):
        return self.arrays[place][::-1]


def run(tasks, work=doubtful, workers=2, seconds=20.0, memory=0):
    return dict(run_in_workers(work, tasks, workers, seconds=seconds, memory=memory))


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_every_task_is_done_once(workers):
    done = list(run_in_workers(doubled, range(40), workers, seconds=20))
    assert sorted(done) == [(n, 2 * n) for n in range(40)]
    assert list(run_in_workers(doubled, [], workers, seconds=20)) == []


@pytest.mark.parametrize("how", ["exit", "crash"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_dies_costs_one_task(how, workers):
    tasks = [*range(12), how, *range(12, 30)]
    done = run(tasks, workers=workers)
    lost = done.pop(how)
    assert isinstance(lost, LostTask) and lost.kind == "crashed"
    assert ("signal 11" if how == "crash" else "exit code 3") in lost.detail
    assert done == {n: n for n in range(30)}


class KilledWhenSent:
    """Its process is killed while it sends this, as the OOM killer may."""

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def killed_when_sent(task):
    return KilledWhenSent() if task == "killed" else task


def test_a_process_that_is_killed_while_it_sends_an_answer_costs_one_task():
    done = run([*range(12), "killed", *range(12, 30)], work=killed_when_sent)
    lost = done.pop("killed")
    assert lost.kind == "crashed" and lost.outside
    assert done == {n: n for n in range(30)}


def test_one_that_hangs_is_ended_in_time_and_costs_one_task():
    began = time.monotonic()
    done = run([*range(5), "hang", *range(5, 20)], seconds=1.0)
    assert time.monotonic() - began < 15
    assert done.pop("hang").kind == "hung"
    assert done == {n: n for n in range(20)}


def test_many_deaths_in_a_row():
    tasks = [("exit" if n % 3 == 0 else n) for n in range(9)]
    done = list(run_in_workers(doubtful, tasks, 2, seconds=20))
    assert [answer.kind for task, answer in done if task == "exit"] == ["crashed"] * 3
    assert sorted(task for task, _ in done if task != "exit") == [1, 2, 4, 5, 7, 8]


def test_a_process_decodes_in_one_thread():
    assert run([0], work=threads) == {0: (1, "1")}


class Broken(subprocess.Popen):
    """A process that cannot be started, from the `left`-th on."""

    left = 0

    def __init__(self, *rest, **named):
        if self.left <= 0:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        type(self).left -= 1
        super().__init__(*rest, **named)


@pytest.mark.parametrize("work", [doubled, several])
@pytest.mark.parametrize("how", ["no process", "no python", "no module"])
def test_where_no_process_can_be_started_this_one_does_the_work(monkeypatch, work, how):
    if how == "no process":
        monkeypatch.setattr(subprocess, "Popen", Broken)
    elif how == "no python":
        monkeypatch.setattr(sys, "executable", None)
    else:
        monkeypatch.setattr(supervising, "WORKER_COMMAND", "import a_module_that_is_not_there")
    said = []
    done = list(run_in_workers(work, range(3), 2, seconds=20, warn=said.append))
    assert len(said) == 1 and said[0].startswith("No process can be started to decode images (")
    whole = {n: 2 * n for n in range(3)} if work is doubled else None
    assert (
        dict(done) == whole if whole else done == [(n, (n, k)) for n in range(3) for k in (0, 1, 2)]
    )


def test_fewer_processes_than_wanted_are_enough(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Broken)
    monkeypatch.setattr(Broken, "left", 1)
    assert run(range(30), work=doubled, workers=3) == {n: 2 * n for n in range(30)}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_signals_to_the_group_reach_no_process():
    todo, done = deque(range(4)), {}
    for task, answer in run_in_workers(slowly, todo, 2, seconds=20):
        done[task] = answer
        assert running()
        for process in running():
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
                os.kill(process, getattr(signal, name))
    assert done == {n: n for n in range(4)}


def running():
    """Processes that this one has started to decode."""
    asked = ["pgrep", "-P", str(os.getpid()), "-f", "import worker_main"]
    return [int(n) for n in subprocess.run(asked, capture_output=True, text=True).stdout.split()]


def test_memory_is_bounded():
    assert run(["memory", 1], memory=2 * 2**30) == {"memory": "refused", 1: 1}


def test_a_bug_is_raised_here():
    with pytest.raises(ValueError, match="a bug of ours"):
        run([1, "raise", 2])


def test_a_task_may_have_several_answers_and_each_is_watched():
    found = {}
    for task, answer in run_in_workers(several, [0, "exit", 1, "hang", 2], 2, seconds=1.0):
        found.setdefault(task, []).append(answer)
    whole = {task: [(task, 0), (task, 1), (task, 2)] for task in range(3)}
    kinds = {task: found[task].pop().kind for task in ("exit", "hang")}
    assert kinds == {"exit": "crashed", "hang": "hung"}
    assert found == whole | {task: [(task, 0), (task, 1)] for task in kinds}


@pytest.mark.parametrize("ahead", [1, 8])
def test_tasks_that_come_up_on_the_way_are_done(ahead):
    todo, done = deque([1]), []
    for task, answer in run_in_workers(doubled, todo, 2, seconds=20, ahead=ahead):
        done.append(answer)
        if task < 50:
            todo.extend([answer, 100])
    assert done.count(200) == 6 and sorted(set(done)) == [2, 4, 8, 16, 32, 64, 128, 200]


def test_who_takes_an_answer_slowly_lets_no_process_hang():
    for task, answer in run_in_workers(doubled, range(12), 1, seconds=0.5, ahead=4):
        assert answer == 2 * task
        time.sleep(0.6 if task in (3, 5) else 0)


def test_who_waited_for_work_is_not_taken_for_hung():
    todo, found = deque(["hang", 1]), []
    for task, answer in run_in_workers(slowly, todo, 2, seconds=2.0, ahead=1):
        found.append((task, getattr(answer, "kind", answer)))
        if task == "hang":
            todo.extend([2, 3])  # to one that has been idle for long, and to a new one
    assert dict(found) == {1: 1, 2: 2, 3: 3, "hang": "hung"}


def test_arrays_travel_whole_and_can_be_written_to():
    arrays = [
        np.arange(3_000_000, dtype=np.uint8).reshape(1000, 1000, 3),
        np.zeros((0, 5), np.float32),
        np.arange(24).reshape(4, 6)[:, ::2],
        np.arange(24).reshape(4, 6).T,
    ]
    places = range(len(arrays))
    found = dict(run_in_workers(Sent(arrays), places, 1, seconds=20))
    for place in places:
        assert np.array_equal(found[place], arrays[place][::-1])
        found[place][...] = 0


class Unopened:
    """Cannot be opened where it arrives, and raises what cannot travel."""

    def __init__(self, whole):
        self.whole = whole

    def __reduce__(self):
        return (Unopened, (True,)) if self.whole else (json.loads, ("{",))

    def __call__(self, task):
        class Own(Exception):
            pass

        raise Own("a bug of ours")


def test_what_keeps_a_process_from_beginning_is_said():
    with pytest.raises(json.JSONDecodeError):
        list(run_in_workers(Unopened(False), [1], 1, seconds=20))


def test_an_exception_that_cannot_travel_is_said_in_words():
    with pytest.raises(RuntimeError, match="Own: a bug of ours"):
        list(run_in_workers(Unopened(True), [1], 1, seconds=20))


def test_work_that_cannot_travel_is_said_at_once():
    with pytest.raises((pickle.PicklingError, AttributeError)):
        list(run_in_workers(lambda task: task, [1], 1, seconds=20))


KILLED = """
import os
from tests.data.validate.test_worker_pool import doubtful, run_in_workers
for task, answer in run_in_workers(doubtful, [1, "hang"], 1, seconds=600):
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are asked of Linux")
def test_a_decoder_that_hangs_does_not_outlive_who_led():
    around = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), MARK: "1"}
    ended = subprocess.run([sys.executable, "-c", KILLED], env=around, check=False)
    assert ended.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while marked() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert marked() == []


def marked():
    """Processes with the mark in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # of somebody else, or just ended
            if f"{MARK}=1".encode() in place.read_bytes().split(b"\0"):
                found.append(place)
    return found


def test_leaving_early_leaves_nothing_behind():
    watched = run_in_workers(doubtful, [1, "hang", "hang", "hang"], 2, seconds=600)
    next(watched)
    assert running()
    watched.close()
    assert running() == []
