"""Everything a run needs to go on, in one file that is whole or not there."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from unfreeze.errors import WeightsError
from unfreeze.runtime.atomic import write_bytes

FORMAT = 1


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
