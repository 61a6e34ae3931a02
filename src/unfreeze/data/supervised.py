"""Work on doubtful input in processes that are watched: one that dies or hangs costs one task.

Processes are started anew, without torch: no locks, threads or memory of this one go along. Each
answers task by task, so whoever leads knows which task it is at. Time is bounded for each answer,
memory for each process; both end in a `Lost` for that task alone.
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

SECONDS = 30.0  # for one file
MEMORY = 3 * 2**30  # bytes of address space of a process that decodes
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
}
# glibc keeps what an image took for the next one: asking the system anew costs a third of the time
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
AHEAD = 8  # tasks a process holds, so that it never waits for the next one


class Lost(NamedTuple):
    """A task whose process was lost with it: it `crashed`, or `hung` and was killed.

    `outside`: somebody else may have killed it, as the system does where memory is short.
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
    """(task, work(task) or a Lost) as they are done, in up to `workers` new processes.

    Where `work` is a generator function, each thing it yields is such a pair; after a Lost nothing
    more comes of that task. A deque of `tasks` is emptied as they are given out, and what is added
    to it while the pairs are looked at is done, too.

    `seconds` for each answer. `memory`: bytes of address space for each process where the system
    can bound it (Linux), 0 is no bound; what cannot have more raises MemoryError in `work`.
    `ahead`: tasks that a process holds at once. An exception of `work` is raised here. Leaving the
    iterator kills the processes. They get no signals: who leads decides.

    Where no process can be started this one does the work, unwatched, which `warn` is told.
    """
    todo = tasks if isinstance(tasks, deque) else deque(tasks)
    watch = _Watch(pack((work, memory)), todo, workers, seconds, ahead)
    try:
        yield from watch.answers()
    except _NoProcess as none:
        warn(
            f"No process can be started to decode images ({none}): they are decoded in the main "
            "process, and a file that crashes the decoder ends the run."
        )
        yield from _unwatched(work, todo)
    finally:
        watch.dismiss()


def _unwatched(work: Callable[[Any], Any], todo: deque[Any]) -> Iterator[tuple[Any, Any]]:
    while todo:
        task = todo.popleft()
        found = work(task)
        yield from ((task, one) for one in (found if inspect.isgenerator(found) else (found,)))


class _NoProcess(Exception):
    """No process can be started; the message says why."""


@dataclass(eq=False)
class _Process:
    """A process, the tasks it holds in order, and since when it is at the next answer."""

    popen: "subprocess.Popen[bytes]"
    held: deque[Any] = field(default_factory=deque)
    since: float = 0.0
    answers: int = 0
    killed_at: int | None = None  # the answers it had given when it was killed for the next one


class _Watch:
    """Who is at which task, and since when."""

    def __init__(
        self, work: Packed, todo: deque[Any], workers: int, seconds: float, ahead: int
    ) -> None:
        self.work, self.todo, self.workers = work, todo, workers
        self.seconds, self.ahead = seconds, ahead
        self.staff: list[_Process] = []
        self.heard: queue.SimpleQueue[tuple[_Process, Message | None]] = queue.SimpleQueue()

    def answers(self) -> Iterator[tuple[Any, Any]]:
        """Pairs of task and answer until every task is over."""
        while self.todo or any(process.held for process in self.staff):
            self._staff_up()
            try:
                process, message = self.heard.get(timeout=self._patience())
            except queue.Empty:
                self._end_the_hung()
                continue
            found = self._bury(process) if message is None else self._taken(process, message)
            if found is not None:
                yield found

    def dismiss(self) -> None:
        """End all processes now."""
        for process in self.staff:
            process.popen.kill()
        for process in self.staff:
            self._dismissed(process)

    def _dismissed(self, process: _Process) -> None:
        process.popen.kill()
        process.popen.wait()
        _close(process)

    def _staff_up(self) -> None:
        """As many processes as there is work for."""
        beginning = sum(not process.since for process in self.staff)
        while len(self.staff) < self.workers and beginning * self.ahead < len(self.todo):
            try:
                self._hire()
            except (OSError, RuntimeError, TypeError) as error:  # no processes, threads, Python
                if not self.staff:
                    raise _NoProcess(" ".join(str(error).split())) from error
                self.workers = len(self.staff)  # those that are there do it
            beginning += 1
        for process in self.staff:
            if process.since:
                self._feed(process)

    def _hire(self) -> None:
        with signals_held():
            popen = subprocess.Popen(
                # not from the working folder: the modules are those of this process
                [sys.executable, "-P", "-c", START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders written in C print there
                env=_around(),
            )
            process = _Process(popen)
            self.staff.append(process)
        widen(popen.stdout)
        try:
            threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        except RuntimeError:
            self._dismissed(self.staff.pop())
            raise

    def _taken(self, process: _Process, message: Message) -> tuple[Any, Any] | None:
        """What a process says: a pair of task and answer, or nothing of interest."""
        said: Said = message.opened()
        if said.what == "failed":
            raise said.value
        process.since = time.monotonic()
        if said.what == "began":
            return None
        process.answers += 1
        task = process.held.popleft() if said.over else process.held[0]
        return (task, said.value) if said.what == "answer" else None

    def _patience(self) -> float:
        busy = [p.since + self.seconds for p in self.staff if p.held and p.since]
        return max(0.01, min(busy, default=time.monotonic() + 60.0) - time.monotonic())

    def _end_the_hung(self) -> None:
        now = time.monotonic()
        for process in self.staff:
            if process.held and process.since and now - process.since >= self.seconds:
                process.killed_at = process.answers
                process.popen.kill()  # its listener then hears the end

    def _bury(self, process: _Process) -> tuple[Any, Lost] | None:
        """What a process that ended was at; its other tasks go to another one."""
        self.staff.remove(process)
        code = process.popen.wait()
        _close(process)
        if not process.since:
            if not any(other.since for other in self.staff):
                raise _NoProcess(f"it exited at startup with code {code}")
            self.workers = len(self.staff)
            return None
        # an answer may have come while it was being killed: then nothing is lost by it
        killed = process.killed_at is not None
        lost = process.held and (not killed or process.killed_at == process.answers)
        task = process.held.popleft() if lost else None
        self.todo.extendleft(reversed(process.held))
        if not lost:
            return None
        if killed:
            return task, Lost("hung", f"not finished within {self.seconds:g} s")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        outside = code == -getattr(signal, "SIGKILL", 0)
        return task, Lost("crashed", f"the decoder crashed its process ({how})", outside)

    def _feed(self, process: _Process) -> None:
        """Gives several tasks at once, near the end no more than a fair share."""
        if not self.todo or len(process.held) > self.ahead // 2:
            return
        fair = -(-len(self.todo) // len(self.staff))
        count = min(self.ahead - len(process.held), fair)
        tasks = [self.todo.popleft() for _ in range(count)]
        if not process.held:
            process.since = time.monotonic()  # it had nothing to do until now
        process.held.extend(tasks)
        _tell(process, pack(tasks))

    def _listen(self, process: _Process) -> None:
        _tell(process, self.work)
        while (message := receive(process.popen.stdout)) is not None:
            self.heard.put((process, message))
        self.heard.put((process, None))


def _tell(process: _Process, message: Packed) -> None:
    # a process that just ended is heard of by its listener
    with contextlib.suppress(OSError, ValueError):
        send(process.popen.stdin, message)


def _close(process: _Process) -> None:
    for stream in (process.popen.stdin, process.popen.stdout):
        with contextlib.suppress(OSError):
            stream.close()  # type: ignore[union-attr]


def _around() -> dict[str, str]:
    """The environment of a process beside this one: one thread, and the same modules as here."""
    # also where they are no installed package
    path = os.pathsep.join(filter(None, sys.path))
    return {**_MALLOC, **os.environ, **_ONE_THREAD, "PYTHONPATH": path}
