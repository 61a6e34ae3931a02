"""Work on doubtful input in processes that are watched: one that dies or hangs costs one task.

Each process answers task by task, so whoever leads knows which task it is at. Time is bounded for
each task, memory for each process; both end in a `Lost` for that task alone.
"""

import contextlib
import pickle
import queue
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from unfreeze.data.crew import around

SECONDS = 30.0  # for one file
MEMORY = 3 * 2**30  # bytes of address space of a process that decodes
AHEAD = 8  # tasks a process holds, so that it never waits for the next one
_START = "from unfreeze.data.supervised import serve; serve()"
_LENGTH = struct.Struct("<I")


class Lost(NamedTuple):
    """A task whose process was lost with it: it `crashed`, or `hung` and was killed."""

    kind: Literal["crashed", "hung"]
    detail: str


def supervised(
    work: Callable[[Any], Any],
    tasks: Sequence[Any],
    workers: int,
    *,
    seconds: float,
    memory: int = 0,
) -> Iterator[tuple[Any, Any]]:
    """(task, work(task) or a Lost) as they are done, in `workers` new processes.

    `seconds` for each task. `memory`: bytes of address space for each process where the system can
    bound it (Linux), 0 is no bound; what cannot have more raises MemoryError in `work`. An
    exception of `work` is raised here. Leaving the iterator kills the processes.
    """
    watch = _Watch(pickle.dumps((work, memory)), deque(tasks), seconds)
    try:
        for _ in range(min(workers, len(tasks))):
            watch.hire()
        for _ in tasks:
            yield watch.next_result()
    finally:
        watch.dismiss()


@dataclass(eq=False)
class _Process:
    """A process, the tasks it holds in order, and since when it is at the first of them."""

    popen: "subprocess.Popen[bytes]"
    held: deque[Any] = field(default_factory=deque)
    since: float = 0.0
    killed_at: list[Any] = field(default_factory=list)  # the task it was killed for


class _Watch:
    """Who is at which task, and since when."""

    def __init__(self, work: bytes, todo: deque[Any], seconds: float) -> None:
        self.work, self.todo, self.seconds = work, todo, seconds
        self.staff: list[_Process] = []
        self.heard: queue.SimpleQueue[tuple[_Process, bytes | None]] = queue.SimpleQueue()

    def hire(self) -> None:
        """A new process; it gets tasks once it has begun."""
        popen = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders written in C print there
            env=around(),
        )
        process = _Process(popen)
        self.staff.append(process)
        listener = threading.Thread(target=self._listen, args=(process,), daemon=True)
        listener.start()

    def next_result(self) -> tuple[Any, Any]:
        """Wait for the next task that is done or lost."""
        while True:
            try:
                process, message = self.heard.get(timeout=self._patience())
            except queue.Empty:
                self._end_the_hung()
                continue
            if message is None:
                lost = self._bury(process)
                if lost is not None:
                    return lost
                continue
            good, answer = pickle.loads(message)
            if good is None:  # it has begun
                process.since = time.monotonic()
                self._feed(process)
                continue
            if not good:
                raise answer
            task = process.held.popleft()
            process.since = time.monotonic()
            self._feed(process)
            return task, answer

    def dismiss(self) -> None:
        """End all processes now."""
        for process in self.staff:
            process.popen.kill()
        for process in self.staff:
            process.popen.wait()
            for stream in (process.popen.stdin, process.popen.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]

    def _patience(self) -> float:
        busy = [p.since + self.seconds for p in self.staff if p.held and p.since]
        return max(0.01, min(busy, default=time.monotonic() + 60.0) - time.monotonic())

    def _end_the_hung(self) -> None:
        now = time.monotonic()
        for process in self.staff:
            if process.held and process.since and now - process.since >= self.seconds:
                process.killed_at = [process.held[0]]
                process.popen.kill()  # its listener then hears the end

    def _bury(self, process: _Process) -> tuple[Any, Lost] | None:
        """What a process that ended was at; its other tasks go to a new one."""
        self.staff.remove(process)
        code = process.popen.wait()
        for stream in (process.popen.stdin, process.popen.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        if not process.since:
            raise RuntimeError(f"a process that should read pictures did not start (exit {code})")
        # an answer may have come while it was being killed: then nothing is lost
        answered = bool(process.killed_at) and process.killed_at != list(process.held)[:1]
        task = process.held.popleft() if process.held and not answered else None
        self.todo.extendleft(reversed(process.held))
        if self.todo:
            self.hire()
        if task is None:
            return None
        if process.killed_at:
            return task, Lost("hung", f"not done within {self.seconds:g} s")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return task, Lost("crashed", f"the decoder ended its process ({how})")

    def _feed(self, process: _Process) -> None:
        while len(process.held) < AHEAD and self.todo:
            task = self.todo.popleft()
            process.held.append(task)
            self._send(process, pickle.dumps(task))

    def _send(self, process: _Process, message: bytes) -> None:
        # a process that just ended is heard of by its listener
        with contextlib.suppress(OSError):
            process.popen.stdin.write(_LENGTH.pack(len(message)) + message)  # type: ignore[union-attr]
            process.popen.stdin.flush()  # type: ignore[union-attr]

    def _listen(self, process: _Process) -> None:
        self._send(process, self.work)
        while (message := _read(process.popen.stdout)) is not None:
            self.heard.put((process, message))
        self.heard.put((process, None))


def _read(stream: Any) -> bytes | None:
    """One message, None where the stream ended before it did."""
    try:
        head = stream.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(head)
        body: bytes = stream.read(length)
    except (OSError, ValueError):
        return None
    return body if len(body) == length else None


def serve() -> None:
    """What a process does: answers tasks in order until there are no more."""
    import signal

    # Ctrl-C reaches the whole group: who leads decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    first = _read(asked)
    if first is None:
        return
    work, memory = pickle.loads(first)
    _bound(memory)
    with contextlib.suppress(BrokenPipeError):
        _tell(answers, (None, None))
        while (task := _read(asked)) is not None:
            _tell(answers, _answer(work, pickle.loads(task)))


def _answer(work: Callable[[Any], Any], task: Any) -> tuple[bool, Any]:
    try:
        return True, work(task)
    except Exception as error:  # it is raised where it can be shown
        return False, error


def _tell(stream: Any, answer: tuple[bool | None, Any]) -> None:
    message = pickle.dumps(answer)
    stream.write(_LENGTH.pack(len(message)) + message)
    stream.flush()


def _bound(memory: int) -> None:
    if not memory or not sys.platform.startswith("linux"):
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
