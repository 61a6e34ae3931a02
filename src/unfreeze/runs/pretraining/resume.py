"""Resuming a pretraining run: whether a checkpoint fits, and what people should know about it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.checkpoints.state import has_last, load_last
from unfreeze.config.field import flag
from unfreeze.config.layering import as_dict
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.errors import DataError, UsageError
from unfreeze.runtime.console import Console
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.swav.dataset_stats import evaluation_preprocess
from unfreeze.training.trainer import PretrainTrainer

MAY_CHANGE = (
    "data",
    "data_root",
    "teacher",  # compared by its weights
    "teacher_arch",
    "device",
    "workers",
    "scan",
    "store",
    "store_budget",
    "checkpoint_every",
    "keep_every",
    "watch_every",
    "keep",
    "patience",
    "on_collapse",
    "logger",
    "tune",  # a resumed run is not tuned again
    "sync_bn",  # these two are compared by their effect
    "syncbn_process_group_size",
)


def describe_run(
    s: PretrainSettings,
    fingerprint: str,
    images: int,
    step: int,
    terms: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """What a checkpoint says about its run: command, settings, data and backbone.

    `terms`: of the weights it began with and of its teacher (`ModelCard.terms`).
    """
    card = ModelCard(
        kind="backbone",
        arch=s.arch or "",
        stem=s.stem,
        preprocess=evaluation_preprocess(s).as_dict(),
        provenance={"verb": "pretrain", "method": s.method, "steps": step, **terms},
    )
    return {
        "kind": "pretrain",
        "settings": as_dict(s),
        "card": card.as_dict(),
        "data": fingerprint,
        "images": images,
    }


def checkpoint_threads(s: PretrainSettings, run: RunFolder) -> int | None:
    """CPU threads of the checkpoint to resume from; None if there is none."""
    folder = run.file("checkpoints")
    if not s.resume or not has_last(folder):
        return None
    return int(load_last(folder, "pretrain")[0]["threads"])


def resume_trainer(
    trainer: PretrainTrainer, s: PretrainSettings, fingerprint: str, console: Console
) -> None:
    """Load the last checkpoint with `--resume`, and cut the metrics to its step. Collective.

    Raises UsageError or DataError if settings or data differ.
    """
    if not s.resume:
        return
    processes, run = trainer.processes, trainer.run
    folder = run.file("checkpoints")
    # read on rank 0 alone: all ranks must resume from the same checkpoint
    checkpoint = processes.on_rank_zero(
        lambda: load_last(folder, "pretrain") if has_last(folder) else None
    )
    if checkpoint is None:
        console.say(f"No checkpoint in {run.path} yet: starting from the beginning.")
    else:
        state, note = checkpoint
        current = describe_run(s, fingerprint, len(trainer.loader.positions), trainer.step)
        processes.on_all_ranks(lambda: check_same_run(state, current, processes.world))
        processes.on_all_ranks(lambda: trainer.load_state_dict(state))
        for message in (note, *resume_notes(state, processes.world)):
            if message:
                console.say(message)
    processes.on_rank_zero(lambda: run.rewind_metrics(-1 if checkpoint is None else trainer.step))
    if checkpoint is not None:
        console.say(f"Resuming from step {trainer.step:,} of {trainer.state.steps:,}.")


def resume_notes(state: Mapping[str, Any], world: int) -> list[str]:
    """Sentences about other processes or threads than the checkpoint's."""
    threads = torch.get_num_threads()
    if state["processes"] != world:
        return [
            f"Processes: {state['processes']} before, {world} now. Batches, codes and queue are "
            "the same; the summation order differs, so weights agree only up to rounding."
        ]
    if state["threads"] != threads:
        return [
            f"Threads: {state['threads']} before, {threads} now. The summation order differs, so "
            f"weights agree only up to rounding (bit for bit: OMP_NUM_THREADS={state['threads']})."
        ]
    return []


def check_same_run(state: Mapping[str, Any], current: Mapping[str, Any], world: int) -> None:
    """Raise UsageError or DataError if the checkpoint `state` is of another run than `current`.

    `current`: of `describe_run`; `world`: processes now.
    """
    if (state["data"], state["images"]) != (current["data"], current["images"]):
        raise DataError(
            f"The dataset changed since the checkpoint: {state['images']:,} images then, "
            f"{current['images']:,} now.",
            "Restore the files, or start a new run (--init loads this run's weights).",
        )
    old, new = state["settings"], current["settings"]
    if _norm_groups(old, state["processes"]) != _norm_groups(new, world):
        raise UsageError(
            "--sync-bn differs from the checkpoint's: batch norm would use other images.",
            "Use the --sync-bn and the number of processes of the checkpoint.",
        )
    changed = [n for n in new if n in old and n not in MAY_CHANGE and old[n] != new[n]]
    if changed:
        shown = ", ".join(f"{flag(n)} {old[n]} -> {new[n]}" for n in changed)
        raise UsageError(
            f"These settings differ from the checkpoint's: {shown}.",
            "Leave them out, or start a new run. These may change on resume: "
            f"{', '.join(map(flag, MAY_CHANGE))}, and the number of processes.",
        )


def _norm_groups(settings: Mapping[str, Any], world: int) -> str:
    """The images that share batch norm statistics: `all` of the batch, or groups of processes."""
    how = "all" if world == 1 else str(settings["sync_bn"])
    if how == "all":
        return how
    size = settings["syncbn_process_group_size"] if how == "groups" else 1
    return f"{world} processes by {size}"
