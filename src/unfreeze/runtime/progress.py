"""Console output with progress: bars on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from unfreeze.runtime.console import WARNING, Console, ProgressCallback
from unfreeze.runtime.terminal import Environment, terminal_width
from unfreeze.runtime.text_layout import TextTable, cell_width, wrapped, wrapped_with_command
from unfreeze.text import for_screen

if TYPE_CHECKING:
    from rich.console import Console as Screen
    from rich.progress import Progress, Task
    from rich.text import Text

EVERY = 50  # steps between plain lines
SILENT_INTERVAL = 10.0  # seconds between plain lines for progress without text


def make_console(world: Environment) -> Console:
    """A console with progress bars on a terminal, and plain lines elsewhere."""
    return TerminalConsole(world) if world.watched else PlainConsole(world)


class PlainConsole:
    """A console of plain lines; progress is one line every 50 steps, with the time left."""

    def __init__(self, world: Environment, clock: Callable[[], float] = time.monotonic) -> None:
        self.world = world
        self.clock = clock

    def say(self, text: str) -> None:
        """Print one line."""
        self.world.tell(text)

    def warn(self, message: str) -> None:
        """Print a line that begins with `warning:`."""
        self.world.tell(f"{WARNING}: {message}")

    def table(self, table: TextTable) -> None:
        """Print a table, wrapped if COLUMNS is set."""
        self.world.tell("\n".join(table.lines(terminal_width(self.world.stderr))))

    @contextlib.contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[ProgressCallback]:
        """Yields an `advance`; steps without text print a line every ten seconds at most."""
        count = _ProgressCount(label, total, done, self.clock())
        printed_at = count.started_at

        def advance(steps: int, text: str = "") -> None:
            nonlocal printed_at
            before, now = count.done, self.clock()
            count.done += steps
            due = count.done // EVERY > before // EVERY or count.done == total
            if due if text else now - printed_at >= SILENT_INTERVAL:
                self.world.tell(count.line(text, now))
                printed_at = now

        yield advance


class _ProgressCount:
    """Progress of one task."""

    def __init__(self, label: str, total: int, done: int, started_at: float) -> None:
        self.label, self.total, self.done = label, total, done
        self.first, self.started_at = done, started_at

    def line(self, text: str, now: float) -> str:
        """`label 50/400  text  2:10 left`."""
        counter = f"{self.label} {self.done}/{self.total}"
        left = time_left(self.done, self.first, self.total, now - self.started_at)
        return "  ".join(part for part in (counter, text, left) if part)


def time_left(done: float, first: float, total: float, elapsed: float) -> str:
    """`2:10 left` at the rate since `first`; "" if unknown or finished."""
    completed = done - first
    if completed <= 0 or done >= total:
        return ""
    return f"{duration(elapsed / completed * (total - done))} left"


def duration(seconds: float) -> str:
    """`0:42`, `12:05`, `3:02:10`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class TerminalConsole:
    """A console with progress bars redrawn in place; lines scroll above them."""

    def __init__(self, world: Environment) -> None:
        from rich.console import Console as Screen

        self.world = world
        self.screen = Screen(file=world.stderr, highlight=False)
        self._bars: Progress | None = None  # shared by nested bars

    def say(self, text: str) -> None:
        """Print one line, wrapped between words; a command at its end can be pasted."""
        self._print(wrapped_with_command(for_screen(text), self.screen.width))

    def warn(self, message: str) -> None:
        """Print a warning, the label in colour, the message in bold."""
        from rich.text import Text

        first, *rest = wrapped(for_screen(f"{WARNING}: {message}"), self.screen.width)
        mark = len(WARNING) + 1
        head = Text.assemble((first[:mark], "bold yellow"), (first[mark:], "bold"))
        self._print([head, *(Text(line, "bold") for line in rest)])

    def table(self, table: TextTable) -> None:
        """Print a table."""
        self._print(table.lines(self.screen.width))

    def _print(self, lines: Sequence["str | Text"]) -> None:
        for line in lines:
            self.screen.print(line, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[ProgressCallback]:
        """Yields an `advance` that moves a bar; the bar is removed when the block ends."""
        with self._display() as bars:
            task = bars.add_task(label, total=total, completed=done, said="", first=done)

            def advance(steps: int, text: str = "") -> None:
                fields = {"said": text} if text else {}
                bars.update(task, advance=steps, **fields)  # type: ignore[arg-type]

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


SHORTEST, LONGEST = 6, 30  # cells of a bar
PLAIN = str.maketrans("━─…", "#-.")


def _bars(screen: "Screen") -> "Progress":
    from rich.progress import Progress, ProgressColumn

    class TaskLine(ProgressColumn):
        """The complete line of a task, so that its parts can share the width."""

        def render(self, task: "Task") -> "Text":
            from rich.text import Text

            elapsed = task.elapsed or 0.0
            first, total = task.fields.get("first", 0), task.total or 0
            left = time_left(task.completed, first, total, elapsed)
            share = min(1.0, task.completed / total) if total else 1.0
            said = task.fields["said"].split("  ")
            parts = bar_line(task.description, share, said, left, screen.width - 1)
            if not screen.encoding.lower().startswith("utf"):
                parts = [(words.translate(PLAIN), style) for words, style in parts]
            return Text.assemble(*parts, no_wrap=True)

    return Progress(TaskLine(), console=screen, transient=True)


def bar_line(
    label: str, share: float, fields: Sequence[str], left: str, width: int
) -> list[tuple[str, str]]:
    """(text, style) of `label  epoch 3/30  loss 1.8 ━━━━━━──── 62 %  0:12 left` in `width` cells.

    `fields` are included, the most important first, as far as the shortest bar allows.
    """
    end = "  ".join(part for part in (f"{100 * share:3.0f} %", left) if part)
    room = width - cell_width(end) - SHORTEST - 2
    words = label if cell_width(label) <= room else label[: max(0, room - 1)] + "…"
    for part in fields:
        if part and cell_width(words) + 2 + cell_width(part) > room:
            break  # later parts are less important
        words += f"  {part}" if part else ""
    bar = min(LONGEST, width - cell_width(words) - cell_width(end) - 2)
    done = round(share * bar)
    return [
        (f"{words} ", ""),
        ("━" * done, "green"),
        ("─" * (bar - done), "bright_black"),
        (f" {end}", ""),
    ]
