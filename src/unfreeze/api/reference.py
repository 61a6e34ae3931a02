"""`swav`: the reference implementation's command line, carried out by `pretrain`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from unfreeze.api.pretrain import PretrainPlan, PretrainResult, run_pretrain
from unfreeze.errors import Interrupted, UnfreezeError, UsageError
from unfreeze.runtime.console import Console
from unfreeze.runtime.devices import pick_device, pick_precision
from unfreeze.settings.build import build
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.settings.reference import ReferenceSettings
from unfreeze.swav.dump import Dump, refuse_foreign

IDLE = {
    "one process": (
        "sync_bn",
        "syncbn_process_group_size",
        "dist_url",
        "world_size",
        "rank",
        "local_rank",
    ),
    "codes are always computed in the log domain": ("improve_numerical_stability",),
}
# the advice of `pretrain` in this verb's words
WORDS = {
    "--precision fp32": "--use_fp16 false",
    "--resume": "the same command",
    "--out": "--dump_path",
}
# names that mean the same in both
SAME = {f.name for f in fields(ReferenceSettings)} & {f.name for f in fields(PretrainSettings)}


@dataclass(frozen=True)
class Translation:
    """The same run in the words of `pretrain`, and what there is to say about it."""

    settings: PretrainSettings
    notes: tuple[str, ...]


def run_reference(settings: ReferenceSettings, console: Console) -> PretrainResult | PretrainPlan:
    """Pretrain as the reference's flags say; a run of ours in `dump_path` is gone on with.

    Raises the errors of `unfreeze.errors`; WeightsError for another program's `dump_path`.
    """
    _alone(settings.batch_size, os.environ)
    translation = translated(settings, pick_device("auto"))
    folder = Path(settings.dump_path)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--dump_path {folder} is a file.", "Name a folder.")
    refuse_foreign(folder)
    for note in translation.notes:
        console.say(note)
    dump = Dump(folder, settings.checkpoint_freq, settings.epochs)
    try:
        return run_pretrain(translation.settings, console, on_epoch=dump)
    except Interrupted as stop:
        raise Interrupted(stop.sentence, "The same command goes on from there.") from stop
    except UnfreezeError as error:
        for theirs, ours in WORDS.items():
            error.next_step = error.next_step.replace(theirs, ours)
        raise


def translated(given: ReferenceSettings, device: torch.device) -> Translation:
    """The settings of `pretrain` that do what `given` says, on `device`. Nothing is read.

    UsageError for what has no counterpart.
    """
    if not given.data_path:
        raise UsageError("unfreeze swav needs --data_path: the folder of pictures.")
    values: dict[str, Any] = {n: getattr(given, n) for n in SAME}
    precision, said = _precision(given, device)
    queue, rounded = _queue(given)
    values |= {
        "data": given.data_path,
        "out": given.dump_path,
        "resume": "auto",
        "recipe": "auto",
        "stem": "imagenet",
        "augment": "photo",
        "optimizer": "larc",
        "queue_length": queue,
        "precision": precision,
    }
    notes = (said, rounded, _idle(given))
    return Translation(build(PretrainSettings, values), tuple(note for note in notes if note))


def _precision(given: ReferenceSettings, device: torch.device) -> tuple[str, str]:
    if not given.use_fp16:
        return "fp32", ""
    if device.type == "cuda":
        return "fp16", ""
    instead, why = pick_precision("auto", device)
    return "auto", f"--use_fp16: without CUDA {instead} is used instead ({why})."


def _queue(given: ReferenceSettings) -> tuple[int, str]:
    """The length as whole batches, as the reference cuts it, and the sentence about that."""
    asked, batch = given.queue_length, given.batch_size
    length = asked - asked % batch
    if length == asked:
        return length, ""
    whole = f"a whole number of batches of {batch}" if length else "less than a batch: it is off"
    return length, f"--queue_length {asked} is rounded down to {length}, {whole}."


def _idle(given: ReferenceSettings) -> str:
    """One line about the flags that were given and mean nothing here."""
    parts = []
    for why, names in IDLE.items():
        typed = [f"--{name}" for name in names if getattr(given, name) is not None]
        parts += [f"{', '.join(typed)} ({why})"] if typed else []
    return f"Without effect here: {'; '.join(parts)}." if parts else ""


def _alone(batch: int, environment: Mapping[str, str]) -> None:
    """UsageError where a launcher has started several processes: each would train a copy."""
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        world = environment.get(name, "")
        if world.isdigit() and int(world) > 1:
            raise UsageError(
                f"{name} is {world}, but runs over several processes are not built yet.",
                f"Start one process; --batch_size {batch * int(world)} keeps the global batch.",
            )
