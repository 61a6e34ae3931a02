"""Entry point: runs one command; an error is printed as a sentence and a next step."""

import contextlib
import errno
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from unfreeze import __version__
from unfreeze.cli.parser import help_text, known_command, overview, parse
from unfreeze.errors import DivergedError, Interrupted, ResourceError, UnfreezeError, UsageError
from unfreeze.runtime.atomic import full_reason, is_full
from unfreeze.runtime.launcher import detect_launcher
from unfreeze.runtime.signals import ending_interrupts
from unfreeze.runtime.terminal import Environment, is_terminal, open_standard_streams

MANY = ("pretrain", "finetune", "swav")  # commands that support data parallel training


def launcher_rank() -> int:
    """The rank of this process; 0 without a launcher or with invalid variables of one."""
    with contextlib.suppress(UsageError):
        return detect_launcher().rank
    return 0


def require_single_process(verb: str) -> None:
    """UsageError if a launcher started several processes of a single-process command."""
    if verb not in MANY and (world := detect_launcher().world) > 1:
        raise UsageError(
            f"unfreeze {verb} runs in one process, but the launcher started {world}.",
            f"Run it without a launcher; {', '.join(MANY[:-1])} and {MANY[-1]} support several.",
        )


def is_lost_peer(error: BaseException) -> bool:
    """Whether this process fails only because another one ended."""
    if not isinstance(error, RuntimeError) or isinstance(error, UnfreezeError):
        return False
    named = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    message = str(error).lower()
    return named or any(word in message for word in ("gloo", "connection closed by peer", "nccl"))


def write_launcher_error(error: UnfreezeError) -> None:
    """Write the error to the file from which torchrun reports failures."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
    if not path or error.spoken:
        return
    text = " ".join(part for part in (error.sentence, error.next_step) if part)
    extra = {"timestamp": str(int(time.time())), "py_callstack": text}
    with contextlib.suppress(OSError):  # the error is printed to stderr too
        Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}))


RANK_ZERO_SECONDS = 30  # how much later than the others rank 0 may start on a busy machine

_AGAIN = "Free some space, and run the command again."  # of commands that resume nothing
# command -> what it needs to resume from the last checkpoint
_RESUMED_BY = {
    "pretrain": "with --resume ",
    "finetune": "with --resume ",
    "compare": "with --resume ",
    "swav": "",
}


def main(argv: Sequence[str] | None = None, world: Environment | None = None) -> int:
    """Run the command in `argv` and return the exit code; never raises.

    None: the arguments of this process; signals are then handled until the process ends.
    """
    if argv is None:
        open_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    world = world or Environment()
    with ending_interrupts(whole_process=argv is None) as ending:
        try:
            code = run_program(words, world)
        except (Exception, KeyboardInterrupt) as error:
            ending.over = True
            code = report_error(error, words, world)
            if argv is None:
                wait_for_rank_zero(error)
        ending.code = code
    return code


def report_error(error: BaseException, words: list[str], world: Environment) -> int:
    """Print the error, once for all processes of a run, and return its exit code."""
    if "--debug" in words:
        world.tell("".join(traceback.format_exception(error)).rstrip())
    user_error = as_user_error(error, words[0] if words else "")
    if _worker_lost(error) and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else torch prints it again at exit
    spoken = getattr(error, "spoken", None)
    write_launcher_error(user_error)
    if not (is_printed_by_rank_zero(error) if spoken is None else spoken):
        interrupted = isinstance(error, (Interrupted, KeyboardInterrupt))
        world.tell(user_error.sentence if interrupted else f"error: {user_error.sentence}")
        if user_error.next_step:
            world.tell(user_error.next_step)
    return user_error.exit_code


def is_printed_by_rank_zero(error: BaseException) -> bool:
    """Whether rank 0 prints the error, because all processes raise it."""
    everywhere = isinstance(error, (UsageError, DivergedError, Interrupted, KeyboardInterrupt))
    return (everywhere or is_lost_peer(error)) and launcher_rank() > 0


def wait_for_rank_zero(error: BaseException) -> None:
    """Under torchrun, let rank 0 print what all processes raise: torchrun ends all at the first.

    Without this a rank that starts sooner than rank 0 gets the error first, and nobody prints it.
    """
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if torchrun and isinstance(error, UsageError) and is_printed_by_rank_zero(error):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how torchrun ends it, mostly at once
        time.sleep(RANK_ZERO_SECONDS)


def run_program(words: list[str], world: Environment) -> int:
    """The command without error handling."""
    if not words:
        world.tell(overview(world.width))
        return UsageError.exit_code
    if words[0] == "help" and len(words) > 1:
        words = [*words[1:], "--help"]
    if words[0] in ("-h", "--help", "help"):
        world.answer(overview(world.width))
        return 0
    if words[0] == "--version":
        world.answer(f"unfreeze {__version__}")
        return 0
    verb = known_command(words[0])
    require_single_process(verb)
    if {"-h", "--help"} & set(words):
        world.answer(help_text(verb, world.width))
        return 0
    return run_command(verb, words[1:], world)


def run_command(verb: str, words: list[str], world: Environment) -> int:
    """Run one command and print its result; imports only what that command needs."""
    settings = parse(verb, words)

    from unfreeze.cli.output import as_json, as_text, command_after_dry_run
    from unfreeze.cli.registry import command_function
    from unfreeze.runtime.progress import make_console

    with world.quiet_stdout():
        result = command_function(verb)(settings, make_console(world))
    if settings.json:
        text = as_json(result)
    elif getattr(result, "shown_before", False):
        text = command_after_dry_run(verb, words, world.width, colour=world.colour)
    else:
        text = as_text(verb, result, world.width, colour=world.colour)
    if text and not launcher_rank():
        if is_terminal(world.stdout):
            world.answer("")  # a blank line after the console lines of the run
        world.answer(text)
    refused: UnfreezeError | None = getattr(result, "refused", None)
    if refused is not None:
        raise refused  # the result is printed, but the file must not be used
    return 0


def as_user_error(error: BaseException, verb: str) -> UnfreezeError:
    """The error as an UnfreezeError, with advice where the user can fix it."""
    if isinstance(error, ResourceError) and verb not in _RESUMED_BY:
        if error.next_step.endswith("--resume."):  # there is nothing to resume
            return ResourceError(error.sentence, _AGAIN)
        return error
    if isinstance(error, UnfreezeError):
        return error
    if is_lost_peer(error):
        return Interrupted(
            "Another process of this run ended, so this one cannot continue.",
            "If it printed no error, the operating system probably killed it (out of memory?). "
            "The same command with --resume resumes from the last checkpoint.",
        )
    if isinstance(error, KeyboardInterrupt):
        how = _RESUMED_BY.get(verb)
        next_step = (
            f"No file is incomplete: the same command {how}resumes from the last checkpoint, or "
            "starts from the beginning if there is none."
        )
        by = error.args[0] if error.args else "Ctrl-C"
        return Interrupted(f"Stopped by {by}.", "" if how is None else next_step)
    if _out_of_memory(error):
        return ResourceError(
            "Out of memory. The last checkpoint is intact.",
            "Use a smaller --batch-size or --image-size, or fewer --workers.",
        )
    if _worker_lost(error):
        from unfreeze.data.loading.workers import worker_lost_error

        return worker_lost_error()
    if isinstance(error, OSError):
        return _from_system(error, resumed=verb in _RESUMED_BY)
    return _ours(error)


def _out_of_memory(error: BaseException) -> bool:
    # by name and message, so that torch need not be imported
    cuda = type(error).__name__ == "OutOfMemoryError"
    cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or cuda or cpu or system


def _worker_lost(error: BaseException) -> bool:
    # torch raises it from a signal handler, at any point of the command
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def _from_system(error: OSError, *, resumed: bool) -> UnfreezeError:
    if is_full(error):
        reason = f"{full_reason(error)}{_at(error)}."
        if not resumed:
            return ResourceError(reason, _AGAIN)
        return ResourceError(
            f"{reason} The last checkpoint is intact.", "Free some space, then resume."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename is not None:
        return UsageError(
            f"{error.strerror}: {error.filename}.", "Use a path that can be read and written."
        )
    return _ours(error)


def _at(error: OSError) -> str:
    return f" at {error.filename}" if error.filename else ""


def _ours(error: BaseException) -> UnfreezeError:
    message = " ".join(str(error).split())
    return UnfreezeError(
        f"Internal error (a bug in unfreeze): {type(error).__name__}: {message}",
        "Please report it with the command and the output of --debug.",
    )
