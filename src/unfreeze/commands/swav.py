"""`swav`: the command line of the SwAV reference implementation, translated to `pretrain`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from unfreeze.commands.pretrain import PretrainPlan, PretrainResult, run_pretrain
from unfreeze.config.field import flag
from unfreeze.config.layering import build
from unfreeze.config.main_swav import ReferenceSettings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import MEAN, STD
from unfreeze.errors import Interrupted, UnfreezeError, UsageError
from unfreeze.runtime.console import Console
from unfreeze.runtime.device import pick_device, pick_precision
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.launcher import detect_launcher
from unfreeze.runtime.output_files import check_writable
from unfreeze.swav.continued_recipe import CONTINUED_OFF
from unfreeze.swav.reference_checkpoint import ReferenceCheckpoints, refuse_foreign

SYNC = {"pytorch": "all", "apex": "groups"}  # else none, as in the reference
IDLE = {
    "set by the launcher's environment variables": ("dist_url", "world_size", "rank", "local_rank"),
    "assignments are always computed in the log domain": ("improve_numerical_stability",),
}
# flags in the advice of `pretrain` -> this command's flags
WORDS = {
    "--precision fp32": "--use_fp16 false",
    "--resume": "the same command",
    "--out": "--dump_path",
}
# settings with the same name and meaning in both
SAME = {f.name for f in fields(ReferenceSettings)} & {f.name for f in fields(PretrainSettings)}


@dataclass(frozen=True)
class TranslatedSettings:
    """The equivalent settings of `pretrain`, and notes about differences."""

    settings: PretrainSettings
    notes: tuple[str, ...]


@isolated()
def run_swav(settings: ReferenceSettings, console: Console) -> PretrainResult | PretrainPlan:
    """Pretrain with the reference's flags; an unfreeze run in `dump_path` is resumed.

    Raises the errors of `unfreeze.errors`; WeightsError if another program wrote `dump_path`.
    """
    translation = translate(settings, pick_device("auto"), detect_launcher().world)
    folder = Path(settings.dump_path)
    check_writable("--dump_path", folder)
    refuse_foreign(folder)
    for note in translation.notes:
        console.say(note)
    dump = ReferenceCheckpoints(folder, settings.checkpoint_freq, settings.epochs)
    try:
        return run_pretrain(translation.settings, console, on_epoch=dump)
    except Interrupted as stop:
        raise Interrupted(stop.sentence, "Resume with the same command.") from stop
    except UnfreezeError as error:
        for pretrain_flag, swav_flag in WORDS.items():
            error.next_step = error.next_step.replace(pretrain_flag, swav_flag)
        for name in SAME:
            error.next_step = error.next_step.replace(flag(name), f"--{name}")
        raise


def translate(
    given: ReferenceSettings, device: torch.device, processes: int = 1
) -> TranslatedSettings:
    """The settings of `pretrain` equivalent to `given` on `device`; reads no file.

    `given.batch_size` is per process. UsageError for values without an equivalent.
    """
    if not given.data_path:
        raise UsageError(
            "unfreeze swav needs --data_path.", "Add --data_path FOLDER, the folder of images."
        )
    values: dict[str, Any] = {n: getattr(given, n) for n in SAME}
    precision, precision_note = _precision(given, device)
    batch = given.batch_size * processes
    queue, queue_note = _queue(given.queue_length, batch)
    warmup, warmup_note = _warmup(given)
    values |= {
        "data": given.data_path,
        "out": given.dump_path,
        "resume": "auto",
        "recipe": "auto",
        **CONTINUED_OFF,
        "mean": MEAN,
        "std": STD,
        "stem": "imagenet",
        "augment": "photo",
        "optimizer": "larc",
        "batch_size": batch,
        "queue_length": queue,
        "sync_bn": SYNC.get(given.sync_bn, "none"),
        "syncbn_process_group_size": given.syncbn_process_group_size,
        "precision": precision,
        "tune": "off",
        **warmup,
    }
    notes = (precision_note, queue_note, warmup_note, _ignored_flags(given))
    return TranslatedSettings(
        build(PretrainSettings, values), tuple(note for note in notes if note)
    )


def _precision(given: ReferenceSettings, device: torch.device) -> tuple[str, str]:
    if not given.use_fp16:
        return "fp32", ""
    if device.type == "cuda":
        return "fp16", ""
    instead, why = pick_precision("auto", device)
    return "auto", f"--use_fp16 needs CUDA: using {instead} instead ({why})."


def _queue(requested: int, batch: int) -> tuple[int, str]:
    """(queue length rounded down to a multiple of the batch, as in the reference; a note)."""
    length = requested - requested % batch
    if length == requested:
        return length, ""
    why = f"a multiple of the batch size {batch}" if length else "as it is less than a batch: off"
    return length, f"--queue_length {requested} is rounded down to {length}, {why}."


def _warmup(given: ReferenceSettings) -> tuple[dict[str, Any], str]:
    """(settings for a warm-up that is longer than the run, a note).

    The reference then ends within the warm-up; here the warm-up ends with the run, at the learning
    rate that the reference would have reached.
    """
    epochs, warmup = given.epochs, given.warmup_epochs
    if warmup <= epochs:
        return {}, ""
    if not epochs:
        return {"warmup_epochs": 0}, ""
    reached = given.start_warmup + (given.base_lr - given.start_warmup) * epochs / warmup
    note = (
        f"--warmup_epochs {warmup} is more than --epochs {epochs}: the run ends in the warm-up, "
        f"at a learning rate of {reached:g}."
    )
    return {"warmup_epochs": epochs, "base_lr": reached}, note


def _ignored_flags(given: ReferenceSettings) -> str:
    """A note about the given flags that have no effect; "" for none."""
    parts = []
    for why, names in IDLE.items():
        flags = [f"--{name}" for name in names if getattr(given, name) is not None]
        parts += [f"{', '.join(flags)} ({why})"] if flags else []
    return f"Ignored: {'; '.join(parts)}." if parts else ""
