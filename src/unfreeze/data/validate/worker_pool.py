"""A process pool for untrusted input: a worker that crashes or hangs loses only its current task.

Workers are new processes without torch, so they inherit no locks, threads or memory. Each returns
results task by task, so that the parent knows the current task of each worker. Time is limited per
result, memory per process; a task that exceeds a limit becomes a `LostTask`.
"""

import contextlib
import inspect
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from unfreeze.data.sources.builtin import ArraySource
from unfreeze.data.sources.source import Source
from unfreeze.runtime.signals import signals_blocked
from unfreeze.runtime.threads import processors

PIPE_BYTES = 2**20  # capacity of a pipe (Linux): fewer system calls per image
_HEAD = struct.Struct("<IH")  # bytes of the pickle, and how many buffers follow
_SIZE = struct.Struct("<Q")

Packed = list[bytes | memoryview]


class PipeMessage(NamedTuple):
    """A pickle and its buffers, not yet unpickled."""

    body: bytes
    buffers: list[bytearray]

    def opened(self) -> Any:
        """The unpickled object; its arrays are writable views of the buffers."""
        return pickle.loads(self.body, buffers=self.buffers)


def pack(value: Any) -> Packed:
    """Pickles an object without copying its arrays."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    sizes = b"".join(_SIZE.pack(len(part)) for part in raw)
    return [_HEAD.pack(len(body), len(raw)) + sizes + body, *raw]


def send(stream: Any, message: Packed) -> None:
    """Writes one message."""
    for part in message:
        stream.write(part)
    stream.flush()


def receive(stream: Any) -> PipeMessage | None:
    """Reads one message; None at the end of the stream."""
    try:
        length, count = _HEAD.unpack(_exactly(stream, _HEAD.size))
        sizes = [_SIZE.unpack(_exactly(stream, _SIZE.size))[0] for _ in range(count)]
        body = bytes(_exactly(stream, length))
        return PipeMessage(body, [_exactly(stream, size) for size in sizes])
    except (OSError, ValueError, EOFError):
        return None


def enlarge_pipe(stream: Any) -> None:
    """Increases the capacity of a pipe (Linux only)."""
    if sys.platform.startswith("linux"):
        import fcntl

        with contextlib.suppress(OSError):  # above the limit of the system
            fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _exactly(stream: Any, count: int) -> bytearray:
    data = bytearray(count)
    if stream.readinto(data) < count:
        raise EOFError
    return data


_POLL_SECONDS = 2.0  # between checks that the parent is alive
WORKER_COMMAND = "from unfreeze.data.validate.worker_pool import worker_main; worker_main()"


class WorkerMessage(NamedTuple):
    """A message of a worker: it `began`, an `answer`, a task is `over`, or the work `failed`."""

    what: Literal["began", "answer", "over", "failed"]
    value: Any = None
    over: bool = False  # with the last answer of a task


def worker_main() -> None:
    """Reads tasks from stdin and writes results to stdout, until stdin is closed."""
    # the parent handles interrupts; other signals were blocked when this process started
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    requests, responses = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    first = receive(requests)
    if first is None:
        return
    with contextlib.suppress(BrokenPipeError):
        try:
            work, memory = first.opened()
            _limit_memory(memory)
        except Exception as error:  # such as a missing module
            send(responses, _failed(error))
            return
        send(responses, pack(WorkerMessage("began")))
        while (tasks := receive(requests)) is not None:
            for task in tasks.opened():
                for message in _results(work, task):
                    send(responses, message)


def _results(work: Callable[[Any], Any], task: Any) -> Iterator[Packed]:
    try:
        result = work(task)
        if not inspect.isgenerator(result):
            yield pack(WorkerMessage("answer", result, over=True))
            return
        for item in result:
            yield pack(WorkerMessage("answer", item))
        yield pack(WorkerMessage("over", over=True))
    except Exception as error:  # raised in the parent
        yield _failed(error)


def _failed(error: Exception) -> Packed:
    try:
        pickle.loads(pickle.dumps(error))
        return pack(WorkerMessage("failed", error))
    except Exception:  # not every exception can be pickled
        return pack(WorkerMessage("failed", RuntimeError(f"{type(error).__name__}: {error}")))


def _exit_with_parent(parent: int) -> None:
    """Exits when the parent was killed, also while a decoder hangs."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def _limit_memory(memory: int) -> None:
    if not memory or not sys.platform.startswith("linux"):
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


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


class LostTask(NamedTuple):
    """The result of a task whose worker `crashed`, or `hung` and was killed.

    `outside`: the worker may have been killed from outside, such as by the OOM killer.
    """

    kind: Literal["crashed", "hung"]
    detail: str
    outside: bool = False


def run_in_workers(
    work: Callable[[Any], Any],
    tasks: Iterable[Any],
    workers: int,
    *,
    seconds: float,
    memory: int = 0,
    ahead: int = AHEAD,
    warn: Callable[[str], object] = warnings.warn,
) -> Iterator[tuple[Any, Any]]:
    """Yields (task, work(task) or LostTask) in order of completion, from `workers` new processes.

    If `work` is a generator function, each item it yields is a pair; after a LostTask there are
    no more pairs of that task. If `tasks` is a deque it is consumed, and tasks that are
    added to it during the iteration are run, too.

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
        self.messages: queue.SimpleQueue[tuple[_Worker, PipeMessage | None]] = queue.SimpleQueue()

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
        with signals_blocked():
            popen = subprocess.Popen(
                # -P: do not import from the working directory
                [sys.executable, "-P", "-c", WORKER_COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # C decoders print there
                env=_worker_environment(),
            )
            process = _Worker(popen)
            self.processes.append(process)
        enlarge_pipe(popen.stdout)
        try:
            threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        except RuntimeError:
            self._kill(self.processes.pop())
            raise

    def _handle(self, process: _Worker, message: PipeMessage) -> tuple[Any, Any] | None:
        """Handles a message; returns a pair of task and result, or None."""
        content: WorkerMessage = message.opened()
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

    def _reap_worker(self, process: _Worker) -> tuple[Any, LostTask] | None:
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
            return task, LostTask("hung", f"not finished within {self.seconds:g} s")
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        outside = code == -getattr(signal, "SIGKILL", 0)
        return task, LostTask("crashed", f"the decoder crashed its process ({cause})", outside)

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


_BYTES_PER_WORKER = 2**22  # bytes of files whose decoding takes as long as starting a process


def run_on_rows(
    source: Source,
    work: Callable[[int], Any],
    rows: list[int],
    *,
    workers: int | None,
    seconds: float | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> Iterator[tuple[int, Any]]:
    """Yields (row, work(row) or LostTask) in order of completion; `workers` None: one per CPU.

    Uses `run_in_workers` with limits of time and memory, and fewer workers for small data. Array
    sources need no decoder and are processed here. `warn`: called if no process can be started.
    """
    if isinstance(source, ArraySource):
        return ((row, work(row)) for row in rows)
    useful = 1 + int(source.sizes[rows].sum()) // _BYTES_PER_WORKER
    count = min(workers or processors(), useful)
    return run_in_workers(work, rows, count, seconds=seconds or SECONDS, memory=MEMORY, warn=warn)
