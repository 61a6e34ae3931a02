"""Commands under a launcher: which process prints, and the error file of torchrun."""

import contextlib
import json
import os
import time
from pathlib import Path

from unfreeze.errors import UnfreezeError, UsageError
from unfreeze.runtime.launcher import launched

MANY = ("pretrain", "finetune", "swav")  # commands that support data parallel training


def started_rank() -> int:
    """The rank of this process; 0 without a launcher or with invalid variables of one."""
    with contextlib.suppress(UsageError):
        return launched().rank
    return 0


def one_process(verb: str) -> None:
    """UsageError if a launcher started several processes of a single-process command."""
    if verb not in MANY and (world := launched().world) > 1:
        raise UsageError(
            f"unfreeze {verb} runs in one process, but the launcher started {world}.",
            f"Run it without a launcher; {', '.join(MANY[:-1])} and {MANY[-1]} support several.",
        )


def peer_lost(error: BaseException) -> bool:
    """Whether this process fails only because another one ended."""
    if not isinstance(error, RuntimeError) or isinstance(error, UnfreezeError):
        return False
    named = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    message = str(error).lower()
    return named or any(word in message for word in ("gloo", "connection closed by peer", "nccl"))


def launcher_told(error: UnfreezeError) -> None:
    """Write the error to the file from which torchrun reports failures."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
    if not path or error.spoken:
        return
    text = " ".join(part for part in (error.sentence, error.next_step) if part)
    extra = {"timestamp": str(int(time.time())), "py_callstack": text}
    with contextlib.suppress(OSError):  # the error is printed to stderr too
        Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}))
