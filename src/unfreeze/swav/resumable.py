"""What a pretraining run needs to go on, and whether a checkpoint is of the same run.

The state is that of the run, not of a process: the bank's rows stand in the order in which one
process alone would hold them, so any number of processes can take them up.
"""

from typing import TYPE_CHECKING, Any

import torch

from unfreeze.checkpoints.modelfile import ModelCard
from unfreeze.errors import DataError, UsageError, WeightsError
from unfreeze.settings.build import as_dict
from unfreeze.settings.knob import flag
from unfreeze.swav.bank import Bank
from unfreeze.swav.place import preprocess_of

if TYPE_CHECKING:
    from unfreeze.swav.trainer import Trainer

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
    "tune",  # a resumed run does not measure
    "sync_bn",  # these two are compared by what they do
    "syncbn_process_group_size",
)


def state_of(trainer: "Trainer") -> dict[str, Any]:
    """Everything to go on from here. Collective: each process gives its share."""
    done = trainer.step // trainer.plan.steps_per_epoch
    return {
        "kind": "pretrain",
        "step": trainer.step,
        "epoch": done,  # finished ones
        "loss": trainer.loss,
        "metrics": {"loss": trainer.loss},
        "settings": as_dict(trainer.s),
        "card": _card(trainer).as_dict(),
        "data": trainer.fingerprint,
        "images": len(trainer.loader.positions),
        "threads": torch.get_num_threads(),
        "processes": trainer.processes.world,
        "rng": trainer.processes.gather(torch.get_rng_state()),  # dropout's, by rank
        "device_rng": _drawn(trainer),
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "bank": _joined(trainer),
        "targets": trainer.assigner.state(),
        "watch": trainer.watch.state(),
        "guard": trainer.guard.state(),
        "recoveries": trainer.recoveries,
    }


def restore(trainer: "Trainer", state: dict[str, Any]) -> list[str]:
    """Take up what `state` left; what to say about it.

    UsageError or DataError where settings or data are other ones, WeightsError for another verb's.
    """
    _same_run(state, trainer)
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.step, trainer.loss = state["step"], state["loss"]
    processes = trainer.processes
    if state["processes"] == processes.world:
        torch.set_rng_state(state["rng"][processes.rank])
        _draw_on(trainer.place.device, state.get("device_rng"), processes.rank)
    if state["bank"] is not None:
        trainer.assigner.bank = _share(trainer, state["bank"])
    trainer.assigner.restore(state["targets"], trainer.place.device)
    trainer.watch.restore(state["watch"])
    trainer.guard.restore(state["guard"])
    trainer.recoveries = state["recoveries"]
    return _notes(state, processes.world)


def _card(trainer: "Trainer") -> ModelCard:
    """What whoever starts from this file must know of the backbone in it."""
    s = trainer.s
    return ModelCard(
        kind="backbone",
        arch=s.arch or "",
        stem=s.stem,
        preprocess=preprocess_of(s).as_dict(),
        provenance={"verb": "pretrain", "method": s.method, "steps": trainer.step},
    )


def _drawn(trainer: "Trainer") -> dict[str, Any] | None:
    """The generators of the device, from which its dropout draws, by rank; None on the CPU."""
    device = trainer.place.device
    if device.type == "cpu":
        return None
    own = torch.get_device_module(device).get_rng_state()
    return {"kind": device.type, "states": trainer.processes.gather(own)}


def _draw_on(device: torch.device, drawn: dict[str, Any] | None, rank: int) -> None:
    """Take up a device's generator, where the run was on such a device."""
    if drawn is not None and drawn["kind"] == device.type:
        torch.get_device_module(device).set_rng_state(drawn["states"][rank])


def _joined(trainer: "Trainer") -> dict[str, Any] | None:
    """The bank of all processes in one process's order: batch by batch, in each rank by rank."""
    bank, world = trainer.assigner.bank, trainer.processes.world
    if bank is None:
        return None
    B = trainer.loader.batch_size // world
    parts = torch.stack(trainer.processes.gather(bank.features))  # [ranks, views, length, width]
    ranks, views, length, width = parts.shape
    batches = parts.view(ranks, views, length // B, B, width)
    features = batches.permute(1, 2, 0, 3, 4).reshape(views, -1, width)
    return {"features": features, "filled": bank.filled * world}


def _share(trainer: "Trainer", joined: dict[str, Any]) -> Bank:
    """The rows of a joined bank that are for this process."""
    rank, world = trainer.processes.rank, trainer.processes.world
    features = joined["features"]
    views, _, width = features.shape
    batches = features.view(views, -1, trainer.loader.batch_size, width).chunk(world, dim=2)
    mine = batches[rank].reshape(views, -1, width)
    bank = Bank(*mine.shape).to(trainer.place.device, mine.dtype)
    bank.features.copy_(mine)
    bank.filled = joined["filled"] // world
    return bank


def _notes(state: dict[str, Any], world: int) -> list[str]:
    notes, threads = [], torch.get_num_threads()
    if state["processes"] != world:
        notes.append(
            f"Processes: {state['processes']} before, {world} now. Batches, codes and queue are "
            "the same; sums are made in another order, so weights agree to rounding only."
        )
    elif state["threads"] != threads:
        notes.append(
            f"Threads: {state['threads']} before, {threads} now. Sums are made in another order, "
            f"so weights agree to rounding only (equal bits: OMP_NUM_THREADS={state['threads']})."
        )
    return notes


def _normed(settings: dict[str, Any], world: int) -> str:
    """Over which images batch norm works: `all` of the batch, or what cuts it up."""
    how = "all" if world == 1 else str(settings["sync_bn"])
    if how == "all":
        return how
    size = settings["syncbn_process_group_size"] if how == "groups" else 1
    return f"{world} processes by {size}"


def _same_run(state: dict[str, Any], trainer: "Trainer") -> None:
    if state.get("kind") != "pretrain":
        raise WeightsError(
            "That checkpoint is not one of a pretraining run.", "Name another --out."
        )
    images = len(trainer.loader.positions)
    if (state["data"], state["images"]) != (trainer.fingerprint, images):
        raise DataError(
            f"The data changed since the checkpoint: {state['images']:,} images then, "
            f"{images:,} now.",
            "Bring the files back, or start a new run (--init takes this one's weights).",
        )
    if _normed(state["settings"], state["processes"]) != _normed(
        as_dict(trainer.s), trainer.processes.world
    ):
        raise UsageError(
            "A resumed run keeps its batch norm, but --sync-bn differs from the checkpoint's.",
            "Give the --sync-bn and the number of processes it had.",
        )
    old, new = state["settings"], as_dict(trainer.s)
    changed = [n for n in new if n in old and n not in MAY_CHANGE and old[n] != new[n]]
    if changed:
        shown = ", ".join(f"{flag(n)} {old[n]} -> {new[n]}" for n in changed)
        raise UsageError(
            f"A resumed run keeps its settings, but these differ: {shown}.",
            f"Leave them out, or start anew. Free to change: {', '.join(map(flag, MAY_CHANGE))}, "
            "and the number of processes.",
        )
