"""A command that a launcher started several times: who speaks, and what the launcher is told."""

import contextlib
import json
import os
import time
from pathlib import Path

from unfreeze.errors import UnfreezeError, UsageError
from unfreeze.runtime.launcher import launched

MANY = ("pretrain", "finetune", "swav")  # verbs that many processes can share


def started_rank() -> int:
    """Which process of a run this is; 0 alone. Where the launcher makes no sense: 0 too."""
    with contextlib.suppress(UsageError):
        return launched().rank
    return 0


def one_process(verb: str) -> None:
    """UsageError where a launcher started several processes of a verb that is for one."""
    if verb not in MANY and (world := launched().world) > 1:
        raise UsageError(
            f"unfreeze {verb} works in one process, and a launcher started {world}.",
            f"Call it without the launcher; {', '.join(MANY[:-1])} and {MANY[-1]} use several.",
        )


def peer_lost(error: BaseException) -> bool:
    """Whether this process fails only because another one has gone."""
    if not isinstance(error, RuntimeError) or isinstance(error, UnfreezeError):
        return False
    named = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    said = str(error).lower()
    return named or any(word in said for word in ("gloo", "connection closed by peer", "nccl"))


def launcher_told(error: UnfreezeError) -> None:
    """Leave the sentence where torchrun looks for the reason of a failure."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
    if not place or error.spoken:
        return
    said = " ".join(part for part in (error.sentence, error.next_step) if part)
    extra = {"timestamp": str(int(time.time())), "py_callstack": said}
    with contextlib.suppress(OSError):  # the sentence stands on stderr too
        Path(place).write_text(json.dumps({"message": {"message": said, "extraInfo": extra}}))
