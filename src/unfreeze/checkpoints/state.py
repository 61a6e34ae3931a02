"""Training checkpoints: everything a run needs to resume, in one file written atomically."""

import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unfreeze.checkpoints.integrity import archive_fault
from unfreeze.errors import WeightsError
from unfreeze.runtime.atomic import write_bytes
from unfreeze.runtime.utf8_path import utf8_path

FORMAT = 1
LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, BEST_CHECKPOINT = "last.ckpt", "before.ckpt", "best.ckpt"


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write plain values and tensors atomically, readable by `torch.load(weights_only=True)`."""
    write_bytes(path, to_bytes({"format": FORMAT, **state}))


def to_bytes(value: Any) -> bytes:
    """The bytes of torch.save; in memory, so that a full disk raises OSError at our write."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def load_state(path: str | Path, kind: str = "", *, mapped: bool = False) -> dict[str, Any]:
    """The state written by `save_state`, on the CPU; WeightsError for anything else.

    Verifies the file's checksums first, which torch does not. `kind`: the command whose checkpoint
    it must be ("": any); `mapped`: map the tensors into memory instead of reading them.
    """
    try:
        fault, _ = archive_fault(Path(path))
        if fault:
            raise ValueError(fault)
        # with mmap, tensors are read on access, so that checking a file is cheap
        with utf8_path(path) as readable:
            state = torch.load(readable, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        system = error.strerror if isinstance(error, OSError) else None
        raise WeightsError(
            f"The checkpoint {path} cannot be read: "
            f"{system or 'it is truncated, damaged or not an unfreeze checkpoint'}.",
            "Restore an intact copy, or start again with --overwrite.",
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise WeightsError(
            f"{path} is a checkpoint, but was not written by this version of unfreeze.",
            "Use it as a starting point instead: --init or --weights.",
        )
    if kind and state.get("kind") != kind:
        raise WeightsError(
            f"{path} is the checkpoint of a {state.get('kind')} run, not of a {kind} run.",
            f"Name the folder of a {kind} run, or a new one.",
        )
    return state


def is_unfreeze_checkpoint(loaded: Any) -> bool:
    """Whether `loaded` is an unfreeze training checkpoint with a model card."""
    return (
        isinstance(loaded, dict)
        and loaded.get("format") == FORMAT
        and loaded.get("kind") in ("pretrain", "finetune")
        and isinstance(loaded.get("card"), dict)
    )


def save_last(folder: str | Path, state: dict[str, Any]) -> None:
    """Write `last.ckpt` in `folder`; the previous one becomes `before.ckpt`.

    One of the two is intact at any moment, whatever happens to this process or the disk. A damaged
    `last.ckpt` does not replace `before.ckpt`.
    """
    last, before = Path(folder) / LAST_CHECKPOINT, Path(folder) / PREVIOUS_CHECKPOINT
    data = to_bytes({"format": FORMAT, **state})
    if last.exists() and _is_usable(last, state.get("kind", "")):
        link_checkpoint(last, before)
    write_bytes(last, data)


def load_last(
    folder: str | Path, kind: str = "", also: Sequence[str] = ()
) -> tuple[dict[str, Any], str]:
    """(state of `last.ckpt`, ""); if that is damaged, (the latest usable state, a note about it).

    Alternatives are `before.ckpt` and the files named in `also`. WeightsError if none is usable.
    """
    folder = Path(folder)
    try:
        return load_state(folder / LAST_CHECKPOINT, kind), ""
    except WeightsError as error:
        states = {}
        for name in (n for n in (PREVIOUS_CHECKPOINT, *also) if (folder / n).exists()):
            try:
                states[name] = load_state(folder / name, kind)
            except WeightsError as other_error:
                error.sentence += f" {other_error.sentence}"
        if not states:
            raise
        name = max(states, key=lambda name: int(states[name]["step"]))
        return states[name], f"{error.sentence} {name} is used instead."


def has_last(folder: str | Path, also: Sequence[str] = ()) -> bool:
    """Whether there is a checkpoint to resume from, intact or not."""
    return any(
        (Path(folder) / name).exists() for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, *also)
    )


def _is_usable(path: Path, kind: str) -> bool:
    try:
        load_state(path, kind, mapped=True)
    except WeightsError:
        return False
    return True


def link_checkpoint(last: Path, before: Path) -> None:
    """Make `before` a second name of the file `last`: a hard link, else a copy."""
    spare = before.with_name(f".{before.name}.tmp")
    spare.unlink(missing_ok=True)
    try:
        os.link(last, spare)
    except OSError:  # a file system without links
        shutil.copy2(last, spare)
    spare.replace(before)
    # after a crash both may already be one file; rename() then does nothing and leaves `spare`
    spare.unlink(missing_ok=True)
