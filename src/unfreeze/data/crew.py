"""Processes without torch that share out tasks; if one of them dies, nobody else does."""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
_START = "from unfreeze.data.crew import serve; serve()"


class WorkerLost(Exception):
    """A process ended without an answer: killed, out of memory, or a decoder brought it down."""


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def shared_out(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, Result]]:
    """(task, work(task)) as they are done, in `workers` new processes; `work` is pickled once.

    They are started anew, not forked: no locks or threads of this process go along, and neither
    does its memory. What `work` raises is raised here; WorkerLost where a process ends. Leaving
    the iterator ends them after their present task.
    """
    crew = _Crew(pickle.dumps(work), tasks)
    threads = [
        threading.Thread(target=crew.lead, name="crew", daemon=True)
        for _ in range(min(workers, len(tasks)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in tasks:
            task, result, error = crew.results.get()
            if error is not None:
                raise error
            yield task, result
    finally:
        crew.todo.clear()
        for thread in threads:
            thread.join()


class _Crew:
    """Tasks to do, results that came, and one thread for each process that stands between."""

    def __init__(self, work: bytes, tasks: Sequence[Any]) -> None:
        self.work, self.todo = work, deque(tasks)
        self.results: queue.SimpleQueue[tuple[Any, Any, Exception | None]] = queue.SimpleQueue()

    def lead(self) -> None:
        """Starts a process and gives it tasks until there are none."""
        task: Any = None
        try:
            with _started() as process:
                _send(process.stdin, self.work)
                while (task := self._next()) is not None:
                    _send(process.stdin, pickle.dumps(task[0]))
                    good, answer = pickle.load(process.stdout)  # type: ignore[arg-type]
                    if not good:
                        raise answer
                    self.results.put((task[0], answer, None))
                process.stdin.close()  # type: ignore[union-attr]
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            lost = WorkerLost(f"a process that reads pictures ended: {error}")
            self.results.put((task, None, lost))
        except Exception as error:
            self.results.put((task, None, error))

    def _next(self) -> tuple[Any] | None:
        try:
            return (self.todo.popleft(),)
        except IndexError:
            return None


def around() -> dict[str, str]:
    """The environment of a process beside this one: one thread, and the same modules as here."""
    # also where they are no installed package
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _started() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", _START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=around(),
    )


def _send(stream: Any, message: bytes) -> None:
    stream.write(message)
    stream.flush()


def serve() -> None:
    """What a process of the crew does: answers tasks until there are no more."""
    import signal

    # Ctrl-C reaches the whole group: who leads decides, and closes the pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    try:
        work = pickle.load(asked)
        while True:
            _send(answers, _answer(work, pickle.load(asked)))
    except (EOFError, BrokenPipeError):
        return  # nothing more to do, or nobody to do it for


def _answer(work: Callable[[Any], Any], task: Any) -> bytes:
    try:
        return pickle.dumps((True, work(task)))
    except Exception as error:  # it is raised where it can be shown
        return pickle.dumps((False, error))
