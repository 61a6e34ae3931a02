"""Progress: plain lines where nobody watches, bars where somebody does."""

import io

import pytest

from unfreeze.runtime.progress import (
    PlainConsole,
    TerminalConsole,
    bar_line,
    duration,
    make_console,
)
from unfreeze.runtime.terminal import Environment
from unfreeze.runtime.text_layout import TextTable


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_one_line_each_fifty_steps_with_the_time_left():
    world, clock = Environment(io.StringIO(), io.StringIO()), Clock()
    with PlainConsole(world, clock).progress("pretrain", 120) as advance:
        for _ in range(120):
            clock.now += 2.0
            advance(1, "loss 3.2  data 1 ms  step 80 ms")
    assert world.stderr.getvalue().splitlines() == [
        "pretrain 50/120  loss 3.2  data 1 ms  step 80 ms  2:20 left",
        "pretrain 100/120  loss 3.2  data 1 ms  step 80 ms  0:40 left",
        "pretrain 120/120  loss 3.2  data 1 ms  step 80 ms",
    ]


def test_a_resumed_count_does_not_flatter_the_rate():
    world, clock = Environment(io.StringIO(), io.StringIO()), Clock()
    with PlainConsole(world, clock).progress("pretrain", 200, done=90) as advance:
        clock.now = 10.0
        advance(10, "loss 1")
    assert world.stderr.getvalue() == "pretrain 100/200  loss 1  1:40 left\n"


def test_silent_steps_are_worth_a_line_every_ten_seconds():
    world, clock = Environment(io.StringIO(), io.StringIO()), Clock()
    with PlainConsole(world, clock).progress("decoding", 10_000) as advance:
        for _ in range(10_000):
            clock.now += 0.0025
            advance(1)
    assert len(world.stderr.getvalue().splitlines()) == 2


def test_durations():
    assert [duration(s) for s in (0, 59.6, 725, 10930)] == ["0:00", "1:00", "12:05", "3:02:10"]


def test_the_stream_decides():
    assert isinstance(make_console(Environment(io.StringIO(), io.StringIO())), PlainConsole)
    assert isinstance(make_console(Environment(io.StringIO(), Terminal())), TerminalConsole)


def test_bars_inside_bars_and_lines_above_them(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    world = Environment(io.StringIO(), Terminal())
    console = make_console(world)
    with console.progress("outer", 2) as outer:
        with console.progress("inner", 3) as inner:
            inner(3, "[loss] 1")
            console.say("a line with [brackets]")
        outer(2)
    with console.progress("again", 1) as again:
        again(1)
    assert "a line with [brackets]" in world.stderr.getvalue()
    assert "outer" in world.stderr.getvalue()


def test_warnings_look_like_warnings(monkeypatch):
    plain = Environment(io.StringIO(), io.StringIO())
    make_console(plain).warn("Nothing was learned.")
    assert plain.stderr.getvalue() == "warning: Nothing was learned.\n"
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Environment(io.StringIO(), Terminal())
    make_console(terminal).warn("[red] is no markup.")
    shown = terminal.stderr.getvalue()
    assert "\x1b[1;33mwarning:" in shown and "\x1b[1m [red] is no markup." in shown


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_a_file_holds_gives_the_terminal_no_orders(monkeypatch, stream):
    monkeypatch.setenv("TERM", "dumb")
    world = Environment(io.StringIO(), stream())
    for console in (make_console(world), TerminalConsole(world)):
        console.say("say \x1b]0;title\x07.")
        console.warn("warn \x9b2J.")
    shown = world.stderr.getvalue()
    assert shown.count(r"\x1b]0;title\x07") == 2 and shown.count(r"\x9b2J") == 2
    assert "\x07" not in shown and "\x9b" not in shown


SAID = ["epoch 12/30", "val 0.812", "loss 1.774", "data 3 ms", "step 80 ms"]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("left", ["0:12 left", "13:02:10 left"])
def test_the_bar_shows_epoch_metric_and_time_left_in_its_width(width, left):
    line = "".join(words for words, _ in bar_line("finetune", 0.62, SAID, left, width))
    assert len(line) <= width and line.endswith(f" 62 %  {left}")
    assert "finetune  epoch 12/30 " in line and "━" in line and "─" in line
    assert "val 0.812 " in line and ("step 80 ms" in line) == (width == 120)
    # nothing is cut inside: the words are those that were given
    shown = line[: line.index("━")].split("  ")
    assert all(part.strip() in ["finetune", *SAID] for part in shown)


def test_a_long_label_gives_way():
    line = "".join(words for words, _ in bar_line("x" * 90, 0.5, ["loss 1"], "0:12 left", 60))
    assert len(line) <= 60 and "…" in line and line.endswith("50 %  0:12 left")


def test_lines_of_a_terminal_are_wrapped_between_words(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    world = Environment(io.StringIO(), Terminal())
    console = make_console(world)
    console.say("Four sentences of moderate length do not fit into sixty columns of a terminal.")
    console.say("Resume with: unfreeze finetune 'my photos' --labels l.csv --out runs/one --resume")
    console.table(TextTable(("setting", "value", "why"), [("batch-size", "32", "word " * 20)]))
    lines = world.stderr.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[:4] == [
        "Four sentences of moderate length do not fit into sixty",
        "columns of a terminal.",
        "Resume with:",
        "  unfreeze finetune 'my photos' --labels l.csv \\",
    ]
