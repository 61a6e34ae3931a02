"""One verb, one result, one exit code: the command line in-process."""

import dataclasses
import errno
import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest

import unfreeze
from unfreeze import errors
from unfreeze.cli import registry
from unfreeze.cli.main import as_user_error, main
from unfreeze.runtime.atomic import disk_full
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.terminal import Environment


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
            monkeypatch.setattr(registry, "command_function", lambda verb: work)
        world = Environment(io.StringIO(), io.StringIO())
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
    assert all(f"  {verb} " in out for verb in registry.SETTINGS)


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
        (OSError(errno.EFBIG, "File too large", "/x"), 6, "File size limit reached"),
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


def test_interrupting_says_how_to_resume(command):
    stop = raising(KeyboardInterrupt())
    assert "same command with --resume resumes" in command("pretrain", "pics", work=stop)[2]
    code, _, said = command("swav", "--data_path", "pics", work=stop)
    assert code == 130 and "the same command resumes" in said


def test_interrupting_is_no_error(command):
    stop = errors.Interrupted("Stopped by Ctrl-C after step 1 of 2.", "Resume with: unfreeze ...")
    got = command("pretrain", "pics", work=raising(stop))
    assert got == (130, "", "Stopped by Ctrl-C after step 1 of 2.\nResume with: unfreeze ...\n")


def test_interrupting_what_cannot_be_resumed_promises_nothing(command):
    code, _, err = command("report", "r", work=raising(KeyboardInterrupt()))
    assert (code, err) == (130, "Stopped by Ctrl-C.\n")


def test_debug_shows_the_traceback(command):
    code, _, err = command("report", "r", "--debug", work=raising(KeyError("b")))
    assert code == 1
    assert "Traceback" in err


def test_a_reader_who_leaves_ends_it_quietly(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(
        registry, "command_function", lambda verb: lambda settings, console: Result("r")
    )
    world = Environment(Gone(), io.StringIO())
    assert main(["report", "r"], world) == 0
    assert world.stderr.getvalue() == ""
    assert main(["report"], Environment(io.StringIO(), Gone())) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "utf-16"])
def test_a_result_is_utf_8_whatever_the_locale_and_the_names(encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Environment(out, io.StringIO()).answer("bad\udcff é 🐶.png\x1b")
    assert out.buffer.getvalue() == "bad\\xff é 🐶.png\x1b\n".encode()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_a_screen_shows_what_it_can_and_no_name_moves_its_cursor(encoding):
    class Screen(io.TextIOWrapper):
        def isatty(self):
            return True

    out, err = (Screen(io.BytesIO(), encoding=encoding) for _ in range(2))
    world = Environment(out, err)
    world.answer("bad\udcff é 🐶\x1b[2J")
    world.tell("bad\udcff é 🐶\x1b[2J")
    out.flush()
    for stream in (out, err):
        shown = "é 🐶".encode(encoding, "backslashreplace")
        assert stream.buffer.getvalue() == b"bad\\xff " + shown + b"\\x1b[2J\n"


def test_a_screen_of_ascii_shows_tables_with_its_own_lines():
    err = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Environment(io.StringIO(), err).tell("──\n0.5 ± 0.1 …")
    err.flush()
    assert err.buffer.getvalue() == b"--\n0.5 +- 0.1 ...\n"


class Broken(io.StringIO):
    """A stream whose writes fail, as a pipe, a terminal or a disk may."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.EBADF, errno.ENOSPC])
def test_whoever_tells_people_is_not_stopped_by_their_stream(monkeypatch, number):
    def work(settings, console):
        console.say("a line")
        sys.stdout.write("a library's line")
        with console.progress("steps", 1) as advance:
            advance(1, "text")
        return Result("r")

    monkeypatch.setattr(registry, "command_function", lambda verb: work)
    world = Environment(io.StringIO(), Broken(number))
    assert main(["report", "r"], world) == 0 and "r" in world.stdout.getvalue()


def test_a_result_for_which_there_is_no_room_is_an_error(monkeypatch):
    monkeypatch.setattr(
        registry, "command_function", lambda verb: lambda settings, console: Result("r")
    )
    for number, code in ((errno.EIO, 0), (errno.EBADF, 0), (errno.ENOSPC, 6)):
        world = Environment(Broken(number), io.StringIO())
        assert main(["report", "r"], world) == code
    assert "The disk is full" in world.stderr.getvalue()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_streams_that_are_closed_or_none_end_nothing(monkeypatch, stream):
    monkeypatch.setattr(
        registry, "command_function", lambda verb: lambda settings, console: Result("r")
    )
    closed = io.StringIO()
    closed.close()
    assert main(["report", "r"], Environment(**{stream: closed})) == 0
    monkeypatch.setattr(sys, stream, None)
    assert main(["report", "r"]) == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_being_ended_from_outside_is_130(command, name):
    def ended(settings, console):
        signal.raise_signal(getattr(signal, name))

    code, _, err = command("report", "r", work=ended)
    assert (code, err) == (130, f"Stopped by {name.replace('SIGINT', 'Ctrl-C')}.\n")


def test_help_is_as_wide_as_it_may_be(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = command("help", "finetune")
    assert code == 0 and out == command("finetune", "--help")[1]
    assert 50 < max(map(len, out.splitlines())) <= 60
    assert max(map(len, command("--help")[1].splitlines())) <= 60


@pytest.mark.parametrize("error", [disk_full(Path("x"), OSError(errno.ENOSPC, "no space")),
                                   OSError(errno.ENOSPC, "no space", "x")])  # fmt: skip
def test_only_what_resumes_is_told_to_resume(error):
    for command in ("export", "audit", "suggest", "label", "predict", "evaluate", "embed"):
        shown = as_user_error(error, command)
        assert shown.exit_code == 6 and "The disk is full" in shown.sentence
        assert "checkpoint" not in shown.sentence
        assert shown.next_step == "Free some space, and run the command again."
    for command in ("pretrain", "finetune", "compare"):
        assert "resume" in as_user_error(error, command).next_step
