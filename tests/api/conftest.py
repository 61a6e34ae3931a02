"""What tests of fine-tuning share: no drawing, and a run that is asked to stop on its way."""

import contextlib
import signal

import pytest

from unfreeze.commands import finetune as verb
from unfreeze.transfer.train_step import Stepper


@pytest.fixture
def no_drawing(monkeypatch):
    """No report at a run's end: matplotlib takes longer than a tiny training."""
    monkeypatch.setattr(verb, "write_report_or_warn", lambda run, console: None)


@pytest.fixture
def stopped_after(monkeypatch):
    """`with stopped_after(9) as steps`: SIGTERM comes with the ninth step; `steps` goes on."""

    @contextlib.contextmanager
    def within(count):
        take, steps = Stepper.take, []

        def stopping(self, step, *rest):
            steps.append(step)
            taken = take(self, step, *rest)
            if len(steps) == count:
                signal.raise_signal(signal.SIGTERM)
            return taken

        with monkeypatch.context() as patch:
            patch.setattr(Stepper, "take", stopping)
            yield steps

    return within
