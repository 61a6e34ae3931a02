"""One verb, one result, one exit code: the command line in-process."""

import dataclasses
import errno
import io
import json
import signal
import sys

import pytest

import unfreeze
from unfreeze import errors
from unfreeze.cli import verbs
from unfreeze.cli.main import main
from unfreeze.cli.world import World
from unfreeze.runtime.display import Display, Displayed


@dataclasses.dataclass(repr=False)
class Result(Displayed):
    run: str
    loss: float = 0.5

    def display(self):
        return Display(lead=["It went well."], files=[("model", self.run)])


class Torch:
    class OutOfMemoryError(RuntimeError):
        """What torch raises on a GPU, by name."""


@pytest.fixture
def command(monkeypatch):
    """Calls main in-process; the verb's work is what the test gives."""

    def call(*words, work=None):
        if work is not None:
            monkeypatch.setattr(verbs, "work", lambda verb: work)
        world = World(io.StringIO(), io.StringIO())
        code = main(words, world)
        return code, world.stdout.getvalue(), world.stderr.getvalue()

    return call


def raising(error):
    def work(settings, console):
        raise error

    return work


def test_version_and_overview(command):
    assert command("--version") == (0, f"unfreeze {unfreeze.__version__}\n", "")
    code, out, _ = command("--help")
    assert code == 0
    assert all(f"  {verb} " in out for verb in verbs.SETTINGS)


def test_no_verb_and_a_wrong_one(command):
    code, out, err = command()
    assert (code, out) == (2, "")
    assert "usage: unfreeze" in err
    code, out, err = command("pretrian", "pics")
    assert (code, out) == (2, "")
    assert "Did you mean 'pretrain'?" in err


def test_json_is_the_only_thing_on_stdout(command):
    def work(settings, console):
        console.say("a line for people")
        sys.stdout.write("a library that talks")
        return Result("r", float("nan"))

    code, out, err = command("pretrain", "pics", "--json", work=work)
    assert code == 0
    assert json.loads(out) == {"run": "r", "loss": None}
    assert out.count("\n") == 1
    assert "a line for people" in err
    assert "a library that talks" in err


def test_without_json_a_short_result(command):
    code, out, _ = command("pretrain", "pics", work=lambda settings, console: Result("r"))
    assert (code, out) == (0, "It went well.\n\nmodel  r\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("Sentence.", "Next step."), 2),
        (errors.DataError("Sentence.", "Next step."), 3),
        (errors.WeightsError("Sentence.", "Next step."), 4),
        (errors.DivergedError("Sentence.", "Next step."), 5),
        (errors.ResourceError("Sentence.", "Next step."), 6),
        (errors.Interrupted("Sentence.", "Next step."), 130),
    ],
)
def test_our_errors_are_a_sentence_and_a_next_step(command, error, code):
    got = command("pretrain", "pics", work=raising(error))
    assert got == (code, "", "error: Sentence.\nNext step.\n")


@pytest.fixture
def own_sigchld():
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "--resume"),
        (MemoryError(), 6, "--batch-size"),
        (Torch.OutOfMemoryError("CUDA out of memory"), 6, "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 6, "--batch-size"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 6, "--batch-size"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 6, "The disk is full at /x"),
        (OSError(errno.EFBIG, "File too large", "/x"), 6, "No file may be that large here"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), 6, "--workers"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), 6, "--workers"),
        (RuntimeError("Caught KeyError in DataLoader worker process 0."), 1, "report it"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "Permission denied: /x."),
        (KeyError("b"), 1, "report it"),
        (BrokenPipeError(), 1, "report it"),  # a worker's pipe, not a reader who left
    ],
)
def test_other_errors(command, error, code, said, own_sigchld):
    got, out, err = command("pretrain", "pics", work=raising(error))
    assert (got, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


def test_interrupting_says_how_to_go_on(command):
    stop = raising(KeyboardInterrupt())
    assert "same command with --resume goes on" in command("pretrain", "pics", work=stop)[2]
    code, _, said = command("swav", "--data_path", "pics", work=stop)
    assert code == 130 and "the same command goes on" in said


def test_interrupting_what_cannot_be_resumed_promises_nothing(command):
    code, _, err = command("report", "r", work=raising(KeyboardInterrupt()))
    assert (code, err) == (130, "error: Interrupted.\n")


def test_debug_shows_the_traceback(command):
    code, _, err = command("report", "r", "--debug", work=raising(KeyError("b")))
    assert code == 1
    assert "Traceback" in err


def test_a_reader_who_leaves_ends_it_quietly(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(verbs, "work", lambda verb: lambda settings, console: Result("r"))
    world = World(Gone(), io.StringIO())
    assert main(["report", "r"], world) == 0
    assert world.stderr.getvalue() == ""
    assert main(["report"], World(io.StringIO(), Gone())) == 2


def test_names_that_are_no_utf8_come_out_as_their_bytes():
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    World(out, io.StringIO()).answer("bad\udcff.png")
    assert out.buffer.getvalue() == b"bad\xff.png\n"


def test_being_ended_from_outside_is_130(command):
    def ended(settings, console):
        signal.raise_signal(signal.SIGTERM)

    code, _, err = command("report", "r", work=ended)
    assert (code, err) == (130, "error: Interrupted.\n")


def test_help_is_as_wide_as_it_may_be(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = command("help", "finetune")
    assert code == 0 and out == command("finetune", "--help")[1]
    assert 50 < max(map(len, out.splitlines())) <= 60
    assert max(map(len, command("--help")[1].splitlines())) <= 60
