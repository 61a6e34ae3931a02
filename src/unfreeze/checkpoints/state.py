"""Everything a run needs to go on, in one file that is whole or not there."""

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

FORMAT = 1
LAST, BEFORE, BEST = "last.ckpt", "before.ckpt", "best.ckpt"


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write plain values and tensors so that `torch.load(weights_only=True)` reads them."""
    write_bytes(path, serialised({"format": FORMAT, **state}))


def serialised(value: Any) -> bytes:
    """What torch.save writes; in memory, so that a full disk is an OSError of our own write."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def load_state(path: str | Path, kind: str = "", *, mapped: bool = False) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU. WeightsError for anything else.

    The file's checksums are compared first: torch reads over a damaged byte without a word.
    `kind` is the verb whose state it must be, where that matters.
    """
    try:
        fault, _ = archive_fault(Path(path))
        if fault:
            raise ValueError(fault)
        # mapped, the tensors are read where they are used: to look at the rest costs little
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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


def is_own(loaded: Any) -> bool:
    """Whether this is the state of a run of ours, which says what its network is."""
    return (
        isinstance(loaded, dict)
        and loaded.get("format") == FORMAT
        and loaded.get("kind") in ("pretrain", "finetune")
        and isinstance(loaded.get("card"), dict)
    )


def save_last(folder: str | Path, state: dict[str, Any]) -> None:
    """Write `last.ckpt` in `folder`; the one that was there stays as `before.ckpt`.

    At any moment one of the two is whole, whatever happens to this process or to its disk; a
    `last.ckpt` that cannot serve takes no other's place.
    """
    last, before = Path(folder) / LAST, Path(folder) / BEFORE
    data = serialised({"format": FORMAT, **state})
    if last.exists() and _serves(last, state.get("kind", "")):
        second_name(last, before)
    write_bytes(last, data)


def load_last(
    folder: str | Path, kind: str = "", also: Sequence[str] = ()
) -> tuple[dict[str, Any], str]:
    """(state, note): of `last.ckpt`; where that cannot serve, of the furthest that can, said so.

    Besides `before.ckpt` those are the files named in `also`. WeightsError where none can serve.
    """
    folder = Path(folder)
    try:
        return load_state(folder / LAST, kind), ""
    except WeightsError as error:
        found = {}
        for name in (n for n in (BEFORE, *also) if (folder / n).exists()):
            try:
                found[name] = load_state(folder / name, kind)
            except WeightsError as another:
                error.sentence += f" {another.sentence}"
        if not found:
            raise
        name = max(found, key=lambda name: int(found[name]["step"]))
        return found[name], f"{error.sentence} {name} is used instead."


def has_last(folder: str | Path, also: Sequence[str] = ()) -> bool:
    """Whether there is a checkpoint to go on from, whole or not."""
    return any((Path(folder) / name).exists() for name in (LAST, BEFORE, *also))


def _serves(path: Path, kind: str) -> bool:
    try:
        load_state(path, kind, mapped=True)
    except WeightsError:
        return False
    return True


def second_name(last: Path, before: Path) -> None:
    """Let `before` be the file that `last` is now: no bytes are copied where there are links."""
    spare = before.with_name(f".{before.name}.tmp")
    spare.unlink(missing_ok=True)
    try:
        os.link(last, spare)
    except OSError:  # a file system without links
        shutil.copy2(last, spare)
    spare.replace(before)
    # two names of one file, as a crash can leave last and before: renaming removes neither
    spare.unlink(missing_ok=True)
