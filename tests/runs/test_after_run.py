"""Once the work is safe a fault is told and logged, and fails nothing."""

import pytest

from unfreeze.errors import Interrupted
from unfreeze.runs.after_run import warn_on_failure
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.run_folder import RunFolder


class Heard(QuietConsole):
    """A console that keeps its warnings."""

    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def test_a_fault_is_a_warning_with_the_way_to_try_again(tmp_path):
    heard, run = Heard(), RunFolder(tmp_path)
    with warn_on_failure("The page could not be drawn", run, heard, again="unfreeze report run"):
        raise ValueError("no\ncolours")
    assert heard.warnings == [
        "The page could not be drawn (ValueError: no colours). All other files were written. "
        "To try again: unfreeze report run"
    ]
    assert "test_after_run.py" in (tmp_path / "log.txt").read_text()


def test_it_is_told_where_even_the_log_cannot_be_written(tmp_path):
    heard = Heard()
    with warn_on_failure("The table could not be written", RunFolder(tmp_path / "no"), heard):
        raise OSError(28, "No space left on device")
    assert heard.warnings[0].endswith("All other files were written.")


@pytest.mark.parametrize("stop", [Interrupted("Stopped.", ""), KeyboardInterrupt()])
def test_who_asks_to_stop_is_heard(tmp_path, stop):
    heard = Heard()
    with (
        pytest.raises(type(stop)),
        warn_on_failure("The page could not be drawn", RunFolder(tmp_path), heard),
    ):
        raise stop
    assert not heard.warnings
