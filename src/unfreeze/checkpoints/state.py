"""Everything a run needs to go on, in one file that is whole or not there."""

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from unfreeze.errors import WeightsError
from unfreeze.runtime.atomic import write_bytes

FORMAT = 1
LAST, BEFORE = "last.ckpt", "before.ckpt"


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write plain values and tensors so that `torch.load(weights_only=True)` reads them."""
    write_bytes(path, serialised({"format": FORMAT, **state}))


def serialised(value: Any) -> bytes:
    """What torch.save writes; in memory, so that a full disk is an OSError of our own write."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def load_state(path: str | Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU. WeightsError for anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"The checkpoint {path} cannot be read: it is cut off or not one of ours.",
            "Remove it to start again, or put back a whole one.",
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise WeightsError(
            f"{path} is a checkpoint, but not one that this version of unfreeze wrote.",
            "Use it as a starting point instead: --init or --weights.",
        )
    return state


def save_last(folder: str | Path, state: dict[str, Any]) -> None:
    """Write `last.ckpt` in `folder`; the one that was there stays as `before.ckpt`.

    At any moment one of the two is whole, whatever happens to this process or to its disk.
    """
    last, before = Path(folder) / LAST, Path(folder) / BEFORE
    data = serialised({"format": FORMAT, **state})
    if last.exists():
        _second_name(last, before)
    write_bytes(last, data)


def load_last(folder: str | Path) -> tuple[dict[str, Any], str]:
    """(state, note): of `last.ckpt`, or where that cannot be read of the one before, said so.

    WeightsError where neither can be read.
    """
    last, before = Path(folder) / LAST, Path(folder) / BEFORE
    try:
        return load_state(last), ""
    except WeightsError as error:
        if not before.exists():
            raise
        return load_state(before), f"{error.sentence} The one before it is taken: {BEFORE}."


def has_last(folder: str | Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return any((Path(folder) / name).exists() for name in (LAST, BEFORE))


def _second_name(last: Path, before: Path) -> None:
    spare = before.with_name(f".{before.name}.tmp")
    spare.unlink(missing_ok=True)
    try:
        os.link(last, spare)
    except OSError:  # a file system without links
        shutil.copy2(last, spare)
    spare.replace(before)
