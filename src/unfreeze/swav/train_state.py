"""Checkpoint state of a pretraining run, and the check that a checkpoint may be resumed.

The state belongs to the run, not to a process: the queue's rows are in the order of a single
process, so that any number of processes can resume.
"""

from typing import TYPE_CHECKING, Any

import torch

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.config.field import flag
from unfreeze.config.layering import as_dict
from unfreeze.errors import DataError, UsageError, WeightsError
from unfreeze.swav.device_context import evaluation_preprocess
from unfreeze.swav.queue import FeatureQueue

if TYPE_CHECKING:
    from unfreeze.swav.trainer import PretrainTrainer

MAY_CHANGE = (
    "data",
    "data_root",
    "device",
    "workers",
    "scan",
    "store",
    "store_budget",
    "checkpoint_every",
    "keep_every",
    "watch_every",
    "keep",
    "on_collapse",
    "logger",
    "tune",  # a resumed run is not tuned again
    "sync_bn",  # these two are compared by their effect
    "syncbn_process_group_size",
)


def training_state(trainer: "PretrainTrainer") -> dict[str, Any]:
    """The complete state for a checkpoint. Collective: gathers the share of each process."""
    done = trainer.step // trainer.plan.steps_per_epoch
    return {
        "kind": "pretrain",
        "step": trainer.step,
        "epoch": done,  # finished epochs
        "loss": trainer.loss,
        "metrics": {"loss": trainer.loss},
        "settings": as_dict(trainer.s),
        "card": _card(trainer).as_dict(),
        "data": trainer.fingerprint,
        "images": len(trainer.loader.positions),
        "threads": torch.get_num_threads(),
        "processes": trainer.processes.world,
        "rng": trainer.processes.gather(torch.get_rng_state()),  # by rank; used by dropout
        "device_rng": _device_rng(trainer),
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "bank": _joined_queue(trainer),
        "targets": trainer.assigner.state(),
        "watch": trainer.watch.state(),
        "guard": trainer.guard.state(),
        "recoveries": trainer.recoveries,
    }


def load_training_state(trainer: "PretrainTrainer", state: dict[str, Any]) -> list[str]:
    """Load a checkpoint's `state`; returns notes for people.

    Raises UsageError or DataError if settings or data differ, WeightsError for another command's.
    """
    _same_run(state, trainer)
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.step, trainer.loss = state["step"], state["loss"]
    processes = trainer.processes
    if state["processes"] == processes.world:
        torch.set_rng_state(state["rng"][processes.rank])
        _restore_device_rng(trainer.place.device, state.get("device_rng"), processes.rank)
    if state["bank"] is not None:
        trainer.assigner.bank = _queue_share(trainer, state["bank"])
    trainer.assigner.restore(state["targets"], trainer.place.device)
    trainer.watch.restore(state["watch"])
    trainer.guard.restore(state["guard"])
    trainer.recoveries = state["recoveries"]
    return _notes(state, processes.world)


def _card(trainer: "PretrainTrainer") -> ModelCard:
    """Model card of the backbone in the checkpoint."""
    s = trainer.s
    return ModelCard(
        kind="backbone",
        arch=s.arch or "",
        stem=s.stem,
        preprocess=evaluation_preprocess(s).as_dict(),
        provenance={"verb": "pretrain", "method": s.method, "steps": trainer.step},
    )


def _device_rng(trainer: "PretrainTrainer") -> dict[str, Any] | None:
    """Random states of the device by rank (used by dropout); None on the CPU."""
    device = trainer.place.device
    if device.type == "cpu":
        return None
    state = torch.get_device_module(device).get_rng_state()
    return {"kind": device.type, "states": trainer.processes.gather(state)}


def _restore_device_rng(device: torch.device, saved: dict[str, Any] | None, rank: int) -> None:
    """Restore the device's random state if it comes from the same kind of device."""
    if saved is not None and saved["kind"] == device.type:
        torch.get_device_module(device).set_rng_state(saved["states"][rank])


def _joined_queue(trainer: "PretrainTrainer") -> dict[str, Any] | None:
    """The queue of all processes in single-process order: by batch, then by rank."""
    bank, world = trainer.assigner.bank, trainer.processes.world
    if bank is None:
        return None
    B = trainer.loader.batch_size // world
    parts = torch.stack(trainer.processes.gather(bank.features))  # [ranks, views, length, width]
    ranks, views, length, width = parts.shape
    batches = parts.view(ranks, views, length // B, B, width)
    features = batches.permute(1, 2, 0, 3, 4).reshape(views, -1, width)
    return {"features": features, "filled": bank.filled * world}


def _queue_share(trainer: "PretrainTrainer", joined: dict[str, Any]) -> FeatureQueue:
    """The rows of a joined queue that belong to this process."""
    rank, world = trainer.processes.rank, trainer.processes.world
    features = joined["features"]
    views, _, width = features.shape
    batches = features.view(views, -1, trainer.loader.batch_size, width).chunk(world, dim=2)
    rows = batches[rank].reshape(views, -1, width)
    bank = FeatureQueue(*rows.shape).to(trainer.place.device, rows.dtype)
    bank.features.copy_(rows)
    bank.filled = joined["filled"] // world
    return bank


def _notes(state: dict[str, Any], world: int) -> list[str]:
    notes, threads = [], torch.get_num_threads()
    if state["processes"] != world:
        notes.append(
            f"Processes: {state['processes']} before, {world} now. Batches, codes and queue are "
            "the same; the summation order differs, so weights agree only up to rounding."
        )
    elif state["threads"] != threads:
        notes.append(
            f"Threads: {state['threads']} before, {threads} now. The summation order differs, so "
            f"weights agree only up to rounding (bit for bit: OMP_NUM_THREADS={state['threads']})."
        )
    return notes


def _norm_groups(settings: dict[str, Any], world: int) -> str:
    """The images that share batch norm statistics: `all` of the batch, or groups of processes."""
    how = "all" if world == 1 else str(settings["sync_bn"])
    if how == "all":
        return how
    size = settings["syncbn_process_group_size"] if how == "groups" else 1
    return f"{world} processes by {size}"


def _same_run(state: dict[str, Any], trainer: "PretrainTrainer") -> None:
    if state.get("kind") != "pretrain":
        raise WeightsError("The checkpoint is not from a pretraining run.", "Use another --out.")
    images = len(trainer.loader.positions)
    if (state["data"], state["images"]) != (trainer.fingerprint, images):
        raise DataError(
            f"The dataset changed since the checkpoint: {state['images']:,} images then, "
            f"{images:,} now.",
            "Restore the files, or start a new run (--init loads this run's weights).",
        )
    if _norm_groups(state["settings"], state["processes"]) != _norm_groups(
        as_dict(trainer.s), trainer.processes.world
    ):
        raise UsageError(
            "--sync-bn differs from the checkpoint's: batch norm would use other images.",
            "Use the --sync-bn and the number of processes of the checkpoint.",
        )
    old, new = state["settings"], as_dict(trainer.s)
    changed = [n for n in new if n in old and n not in MAY_CHANGE and old[n] != new[n]]
    if changed:
        shown = ", ".join(f"{flag(n)} {old[n]} -> {new[n]}" for n in changed)
        raise UsageError(
            f"These settings differ from the checkpoint's: {shown}.",
            "Leave them out, or start a new run. These may change on resume: "
            f"{', '.join(map(flag, MAY_CHANGE))}, and the number of processes.",
        )
