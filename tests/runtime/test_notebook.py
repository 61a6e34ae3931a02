"""What a Python call shows, where there is a notebook, a terminal or nobody."""

import sys
import types

import pytest

from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.notebook import NotebookConsole, bar, in_notebook, python_console
from unfreeze.runtime.progress import PlainConsole, TerminalConsole
from unfreeze.runtime.text_layout import TextTable


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def kernel(monkeypatch):
    """IPython as a notebook's kernel has it; what was displayed."""
    shown = []

    class Handle:
        def __init__(self, data):
            self.drawn = [data["text/html"]]
            shown.append(self)

        def update(self, data, raw):
            assert raw
            self.drawn.append(data["text/html"])

    package, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    display.display = lambda data, raw, display_id: Handle(data)
    package.display = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_nobody_watches(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook() and isinstance(python_console(), QuietConsole)
    assert isinstance(python_console(True), PlainConsole)


def test_a_terminal_watches(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(python_console(), TerminalConsole) and isinstance(
        python_console(False), QuietConsole
    )


def test_a_notebook_watches(kernel):
    assert in_notebook() and isinstance(python_console(), NotebookConsole)
    assert isinstance(python_console(False), QuietConsole)


def test_ipython_in_a_terminal_is_no_notebook(kernel):
    sys.modules["IPython"].get_ipython = lambda: types.SimpleNamespace()
    assert not in_notebook()


def test_a_bar_is_redrawn_in_place_and_goes(kernel):
    clock = Clock()
    console = NotebookConsole(clock)
    with console.progress("finetune", 100) as advance:
        for _ in range(100):
            clock.now += 0.125
            advance(1, "epoch 1/3  loss <2>")
    (handle,) = kernel
    assert 20 < len(handle.drawn) < 70  # not each step
    (half,) = (drawn for drawn in handle.drawn if 'value="50" max="100"' in drawn)
    assert "50 %" in half and "0:06 left" in half
    assert "epoch 1/3 · loss &lt;2&gt;" in handle.drawn[-2] and handle.drawn[-1] == ""


def test_lines_warnings_and_tables(kernel, capsys):
    console = NotebookConsole()
    console.say("a line")
    console.warn("a <doubt>")
    console.table(TextTable(("name", "n"), [("a", "5")]))
    assert capsys.readouterr().out == "a line\n"
    assert kernel[0].drawn[0] == "<b>warning:</b> a &lt;doubt&gt;"
    assert "<th" in kernel[1].drawn[0] and ">5</td>" in kernel[1].drawn[0]


def test_a_bar_without_steps_is_full():
    assert "100 %" in bar("nothing", 0, 0, "", "")
