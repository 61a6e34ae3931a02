"""What a watched process does: answers tasks in order, one after the other."""

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

_LOOK_SECONDS = 2.0  # between looks at who leads
START = "from unfreeze.data.serving import serve; serve()"


class Said(NamedTuple):
    """What a process tells: it `began`, an `answer`, that a task is over, that work `failed`."""

    what: Literal["began", "answer", "over", "failed"]
    value: Any = None
    over: bool = False  # with an answer that is the last of its task


def serve() -> None:
    """Tasks come on the standard input, answers go to the standard output; ends with the input."""
    # who leads decides; other signals were held back when this process was started
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_outlive_nobody, args=(os.getppid(),), daemon=True).start()
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    first = receive(asked)
    if first is None:
        return
    with contextlib.suppress(BrokenPipeError):
        try:
            work, memory = first.opened()
            _bound(memory)
        except Exception as error:  # a module that is not there
            send(answers, _failed(error))
            return
        send(answers, pack(Said("began")))
        while (tasks := receive(asked)) is not None:
            for task in tasks.opened():
                for message in _answers(work, task):
                    send(answers, message)


def _answers(work: Callable[[Any], Any], task: Any) -> Iterator[Packed]:
    try:
        found = work(task)
        if not inspect.isgenerator(found):
            yield pack(Said("answer", found, over=True))
            return
        for answer in found:
            yield pack(Said("answer", answer))
        yield pack(Said("over", over=True))
    except Exception as error:  # it is raised where it can be shown
        yield _failed(error)


def _failed(error: Exception) -> Packed:
    try:
        pickle.loads(pickle.dumps(error))
        return pack(Said("failed", error))
    except Exception:  # not every exception travels
        return pack(Said("failed", RuntimeError(f"{type(error).__name__}: {error}")))


def _outlive_nobody(leader: int) -> None:
    """Ends this process where who leads was killed: a decoder that hangs hears of no end."""
    while os.getppid() == leader:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def _bound(memory: int) -> None:
    if not memory or not sys.platform.startswith("linux"):
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
