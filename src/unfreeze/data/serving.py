"""The main loop of a worker process: runs tasks in order and sends back their results."""

import contextlib
import inspect
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from unfreeze.data.wire import Packed, pack, receive, send

_POLL_SECONDS = 2.0  # between checks that the parent is alive
START = "from unfreeze.data.serving import serve; serve()"


class Said(NamedTuple):
    """A message of a worker: it `began`, an `answer`, a task is `over`, or the work `failed`."""

    what: Literal["began", "answer", "over", "failed"]
    value: Any = None
    over: bool = False  # with the last answer of a task


def serve() -> None:
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
        send(responses, pack(Said("began")))
        while (tasks := receive(requests)) is not None:
            for task in tasks.opened():
                for message in _results(work, task):
                    send(responses, message)


def _results(work: Callable[[Any], Any], task: Any) -> Iterator[Packed]:
    try:
        result = work(task)
        if not inspect.isgenerator(result):
            yield pack(Said("answer", result, over=True))
            return
        for item in result:
            yield pack(Said("answer", item))
        yield pack(Said("over", over=True))
    except Exception as error:  # raised in the parent
        yield _failed(error)


def _failed(error: Exception) -> Packed:
    try:
        pickle.loads(pickle.dumps(error))
        return pack(Said("failed", error))
    except Exception:  # not every exception can be pickled
        return pack(Said("failed", RuntimeError(f"{type(error).__name__}: {error}")))


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
