"""What a watched process does: answers tasks in order, one after the other."""

import contextlib
import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from unfreeze.data.wire import pack, receive, send

START = "from unfreeze.data.serving import serve; serve()"


class Said(NamedTuple):
    """What a process tells: it `began`, an `answer`, that a task is over, that work `failed`."""

    what: Literal["began", "answer", "over", "failed"]
    value: Any = None
    over: bool = False  # with an answer that is the last of its task


def serve() -> None:
    """Tasks come on the standard input, answers go to the standard output; ends with the input."""
    # Ctrl-C reaches the whole group: who leads decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    first = receive(asked)
    if first is None:
        return
    work, memory = first.opened()
    _bound(memory)
    with contextlib.suppress(BrokenPipeError):
        send(answers, pack(Said("began")))
        while (task := receive(asked)) is not None:
            for said in _answers(work, task.opened()):
                send(answers, pack(said))


def _answers(work: Callable[[Any], Any], task: Any) -> Iterator[Said]:
    try:
        found = work(task)
        if not inspect.isgenerator(found):
            yield Said("answer", found, over=True)
            return
        for answer in found:
            yield Said("answer", answer)
        yield Said("over", over=True)
    except Exception as error:  # it is raised where it can be shown
        yield Said("failed", error)


def _bound(memory: int) -> None:
    if not memory or not sys.platform.startswith("linux"):
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
