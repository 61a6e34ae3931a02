"""A process pool for untrusted input: a worker that crashes or hangs loses only its current task.

Workers are new processes without torch, so they inherit no locks, threads or memory. Each returns
results task by task, so that the parent knows the current task of each worker. Time is limited per
result, memory per process; a task that exceeds a limit becomes a `Lost`.
"""

import contextlib
import inspect
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from unfreeze.data.serving import START, Said
from unfreeze.data.wire import Message, Packed, pack, receive, send, widen
from unfreeze.runtime.signals import signals_held

SECONDS = 30.0  # time limit for one file
MEMORY = 3 * 2**30  # limit of the address space of a worker in bytes
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
}
# glibc reuses the memory of an image for the next one, which saves a third of the time
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
AHEAD = 8  # tasks sent ahead to each worker, so that it never waits for the next one


class Lost(NamedTuple):
    """The result of a task whose worker `crashed`, or `hung` and was killed.

    `outside`: the worker may have been killed from outside, such as by the OOM killer.
    """

    kind: Literal["crashed", "hung"]
    detail: str
    outside: bool = False


def supervised(
    work: Callable[[Any], Any],
    tasks: Iterable[Any],
    workers: int,
    *,
    seconds: float,
    memory: int = 0,
    ahead: int = AHEAD,
    warn: Callable[[str], object] = warnings.warn,
) -> Iterator[tuple[Any, Any]]:
    """Yields (task, work(task) or Lost) in order of completion, from up to `workers` new processes.

    If `work` is a generator function, each item it yields is a pair; after a Lost there are no more
    pairs of that task. If `tasks` is a deque it is consumed, and tasks that are added to it during
    the iteration are run, too.

    `seconds`: time limit per result. `memory`: limit of the address space per process in bytes
    (Linux only; 0 is unlimited), above which `work` raises MemoryError. `ahead`: number of tasks
    sent to a process at once. Exceptions of `work` are raised here. Closing the iterator kills the
    processes. Signals are blocked in them.

    If no process can be started the work is done in this process, with a warning through `warn`.
    """
    todo = tasks if isinstance(tasks, deque) else deque(tasks)
    pool = _Pool(pack((work, memory)), todo, workers, seconds, ahead)
    try:
        yield from pool.results()
    except _NoWorkerProcess as error:
        warn(
            f"No process can be started to decode images ({error}): they are decoded in the main "
            "process, and a file that crashes the decoder ends the run."
        )
        yield from _run_here(work, todo)
    finally:
        pool.kill_all()


def _run_here(work: Callable[[Any], Any], todo: deque[Any]) -> Iterator[tuple[Any, Any]]:
    while todo:
        task = todo.popleft()
        result = work(task)
        yield from ((task, item) for item in (result if inspect.isgenerator(result) else (result,)))


class _NoWorkerProcess(Exception):
    """No process can be started; the message says why."""


@dataclass(eq=False)
class _Worker:
    """A worker process, its pending tasks in order, and when it began the current result."""

    popen: "subprocess.Popen[bytes]"
    pending: deque[Any] = field(default_factory=deque)
    since: float = 0.0
    result_count: int = 0
    killed_at: int | None = None  # number of results before it was killed


class _Pool:
    """The state of the pool: workers, their tasks and messages."""

    def __init__(
        self, work: Packed, todo: deque[Any], workers: int, seconds: float, ahead: int
    ) -> None:
        self.work, self.todo, self.workers = work, todo, workers
        self.seconds, self.ahead = seconds, ahead
        self.processes: list[_Worker] = []
        self.messages: queue.SimpleQueue[tuple[_Worker, Message | None]] = queue.SimpleQueue()

    def results(self) -> Iterator[tuple[Any, Any]]:
        """Yields pairs of task and result until all tasks are done."""
        while self.todo or any(process.pending for process in self.processes):
            self._start_workers()
            try:
                process, message = self.messages.get(timeout=self._timeout())
            except queue.Empty:
                self._kill_hung()
                continue
            result = (
                self._reap_worker(process) if message is None else self._handle(process, message)
            )
            if result is not None:
                yield result

    def kill_all(self) -> None:
        """Kills all workers."""
        for process in self.processes:
            process.popen.kill()
        for process in self.processes:
            self._kill(process)

    def _kill(self, process: _Worker) -> None:
        process.popen.kill()
        process.popen.wait()
        _close_pipes(process)

    def _start_workers(self) -> None:
        """Starts as many workers as there is work for, and sends them tasks."""
        starting = sum(not process.since for process in self.processes)
        while len(self.processes) < self.workers and starting * self.ahead < len(self.todo):
            try:
                self._start_worker()
            except (OSError, RuntimeError, TypeError) as error:  # no process, thread or interpreter
                if not self.processes:
                    raise _NoWorkerProcess(" ".join(str(error).split())) from error
                self.workers = len(self.processes)  # continue with the existing workers
            starting += 1
        for process in self.processes:
            if process.since:
                self._send_tasks(process)

    def _start_worker(self) -> None:
        with signals_held():
            popen = subprocess.Popen(
                # -P: do not import from the working directory
                [sys.executable, "-P", "-c", START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # C decoders print there
                env=_worker_environment(),
            )
            process = _Worker(popen)
            self.processes.append(process)
        widen(popen.stdout)
        try:
            threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        except RuntimeError:
            self._kill(self.processes.pop())
            raise

    def _handle(self, process: _Worker, message: Message) -> tuple[Any, Any] | None:
        """Handles a message; returns a pair of task and result, or None."""
        content: Said = message.opened()
        if content.what == "failed":
            raise content.value
        process.since = time.monotonic()
        if content.what == "began":
            return None
        process.result_count += 1
        task = process.pending.popleft() if content.over else process.pending[0]
        return (task, content.value) if content.what == "answer" else None

    def _timeout(self) -> float:
        busy = [p.since + self.seconds for p in self.processes if p.pending and p.since]
        return max(0.01, min(busy, default=time.monotonic() + 60.0) - time.monotonic())

    def _kill_hung(self) -> None:
        now = time.monotonic()
        for process in self.processes:
            if process.pending and process.since and now - process.since >= self.seconds:
                process.killed_at = process.result_count
                process.popen.kill()  # its listener thread then sees the end of the stream

    def _reap_worker(self, process: _Worker) -> tuple[Any, Lost] | None:
        """Removes an ended worker; returns its lost task, and puts its other tasks back."""
        self.processes.remove(process)
        code = process.popen.wait()
        _close_pipes(process)
        if not process.since:
            if not any(other.since for other in self.processes):
                raise _NoWorkerProcess(f"it exited at startup with code {code}")
            self.workers = len(self.processes)
            return None
        # a result may have arrived while it was being killed: then no task is lost
        killed = process.killed_at is not None
        lost = process.pending and (not killed or process.killed_at == process.result_count)
        task = process.pending.popleft() if lost else None
        self.todo.extendleft(reversed(process.pending))
        if not lost:
            return None
        if killed:
            return task, Lost("hung", f"not finished within {self.seconds:g} s")
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        outside = code == -getattr(signal, "SIGKILL", 0)
        return task, Lost("crashed", f"the decoder crashed its process ({cause})", outside)

    def _send_tasks(self, process: _Worker) -> None:
        """Sends several tasks at once, but at most a fair share of the rest."""
        if not self.todo or len(process.pending) > self.ahead // 2:
            return
        fair = -(-len(self.todo) // len(self.processes))
        count = min(self.ahead - len(process.pending), fair)
        tasks = [self.todo.popleft() for _ in range(count)]
        if not process.pending:
            process.since = time.monotonic()  # it was idle until now
        process.pending.extend(tasks)
        _send(process, pack(tasks))

    def _listen(self, process: _Worker) -> None:
        _send(process, self.work)
        while (message := receive(process.popen.stdout)) is not None:
            self.messages.put((process, message))
        self.messages.put((process, None))


def _send(process: _Worker, message: Packed) -> None:
    # if the process just ended, its listener thread reports it
    with contextlib.suppress(OSError, ValueError):
        send(process.popen.stdin, message)


def _close_pipes(process: _Worker) -> None:
    for stream in (process.popen.stdin, process.popen.stdout):
        with contextlib.suppress(OSError):
            stream.close()  # type: ignore[union-attr]


def _worker_environment() -> dict[str, str]:
    """The environment of a worker: one thread, and the import path of this process."""
    # the package may not be installed
    path = os.pathsep.join(filter(None, sys.path))
    return {**_MALLOC, **os.environ, **_ONE_THREAD, "PYTHONPATH": path}
