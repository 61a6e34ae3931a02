"""Progress for people: a redrawn line on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from unfreeze.cli.world import World
from unfreeze.runtime.console import WARNING, Advance, Console

if TYPE_CHECKING:
    from rich.progress import Progress, Task
    from rich.text import Text

EVERY = 50  # steps between plain lines
PATIENCE = 10.0  # seconds between plain lines about what says nothing


def make_console(world: World) -> Console:
    """A console that draws where somebody watches, and writes lines where nobody does."""
    return Drawn(world) if world.watched else Lines(world)


class Lines:
    """Plain lines: one each 50 steps, with the time that is left."""

    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        self.world = world
        self.clock = clock

    def say(self, text: str) -> None:
        """One line."""
        self.world.tell(text)

    def warn(self, message: str) -> None:
        """One line that begins with `warning:`."""
        self.world.tell(f"{WARNING}: {message}")

    @contextlib.contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Yields an `advance`; steps without a text are worth a line only every ten seconds."""
        count = _Count(label, total, done, self.clock())
        spoken_at = count.started_at

        def advance(steps: int, text: str = "") -> None:
            nonlocal spoken_at
            before, now = count.done, self.clock()
            count.done += steps
            turned = count.done // EVERY > before // EVERY or count.done == total
            if turned if text else now - spoken_at >= PATIENCE:
                self.world.tell(count.line(text, now))
                spoken_at = now

        yield advance


class _Count:
    """How far a piece of work is."""

    def __init__(self, label: str, total: int, done: int, started_at: float) -> None:
        self.label, self.total, self.done = label, total, done
        self.first, self.started_at = done, started_at

    def line(self, text: str, now: float) -> str:
        """`label 50/400  text  2:10 left`."""
        said = f"{self.label} {self.done}/{self.total}"
        left = self._left(now)
        return "  ".join(part for part in (said, text, left) if part)

    def _left(self, now: float) -> str:
        made = self.done - self.first
        if made <= 0 or self.done >= self.total:
            return ""
        return f"{duration((now - self.started_at) / made * (self.total - self.done))} left"


def duration(seconds: float) -> str:
    """`0:42`, `12:05`, `3:02:10`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Drawn:
    """Bars with rate and time left, redrawn in place; lines scroll above them."""

    def __init__(self, world: World) -> None:
        from rich.console import Console as Screen

        self.screen = Screen(file=world.stderr, highlight=False)
        self._bars: Progress | None = None  # one display for bars inside bars

    def say(self, text: str) -> None:
        """One line."""
        self.screen.print(text, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """The word in colour, the message in bold."""
        from rich.text import Text

        said = Text.assemble((f"{WARNING}: ", "bold yellow"), (message, "bold"))
        self.screen.print(said, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Yields an `advance` that moves a bar; the bar goes when the block ends."""
        with self._display() as bars:
            task = bars.add_task(label, total=total, completed=done, said="", first=done)

            def advance(steps: int, text: str = "") -> None:
                said = {"said": text} if text else {}
                bars.update(task, advance=steps, **said)  # type: ignore[arg-type]

            try:
                yield advance
            finally:
                bars.remove_task(task)

    @contextlib.contextmanager
    def _display(self) -> Iterator["Progress"]:
        if self._bars is not None:
            yield self._bars
            return
        with _bars(self.screen) as bars:
            self._bars = bars
            try:
                yield bars
            finally:
                self._bars = None


def _bars(screen: object) -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    class Rate(ProgressColumn):
        """Steps a second."""

        def render(self, task: "Task") -> "Text":
            return _rate(task)

    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), Rate())
    said = TextColumn("{task.fields[said]}", markup=False)
    return Progress(*columns, Left(), said, console=screen, transient=True)  # type: ignore[arg-type]


def _rate(task: "Task") -> "Text":
    from rich.text import Text

    made = task.completed - task.fields.get("first", 0)
    seconds = task.elapsed or 0.0
    return Text(f"{made / seconds:.1f}/s" if made and seconds else "", style="dim")
