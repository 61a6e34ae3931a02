"""`--on-collapse recover`: returns to the last good checkpoint and changes a setting.

The changed settings are stored in checkpoints, config.toml, log and metrics; a resumed run keeps
them, whatever its command line says.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unfreeze.checkpoints.state import has_last, load_last, load_state
from unfreeze.config.layering import as_dict, build
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.runtime.console import Console
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.swav.auto_recipe import PretrainRecipe
from unfreeze.swav.collapse_detector import (
    GOOD,
    START,
    CollapseError,
    recovery_record,
    restore_best_checkpoint,
)
from unfreeze.swav.collapse_remedies import Remedy
from unfreeze.swav.trainer import OnEpoch, PretrainTrainer

Build = Callable[[PretrainRecipe], PretrainTrainer]


def with_values(chosen: PretrainRecipe, values: Mapping[str, Any]) -> PretrainRecipe:
    """The plan with these values (lists from a checkpoint become tuples)."""
    current = {name: getattr(chosen.settings, name) for name in vars(chosen.settings)}
    return replace(chosen, settings=build(PretrainSettings, {**current, **values}))


def kept(
    chosen: PretrainRecipe, run: RunFolder, console: Console
) -> tuple[PretrainRecipe, int | None]:
    """(plan, CPU threads) of a resumed run, with the changes of its recoveries, which are shown.

    Threads None: there is no checkpoint yet.
    """
    folder = run.file("checkpoints")
    if not chosen.settings.resume or not has_last(folder):
        return chosen, None
    state = load_last(folder, "pretrain")[0]
    recoveries = state["recoveries"]
    values: dict[str, Any] = {}
    for entry in recoveries:
        values |= entry["values"]
    if values:
        tried = "; ".join(entry["remedy"] for entry in recoveries)
        console.say(f"This run recovered from a collapse with changed settings: {tried}.")
    return with_values(chosen, values), int(state["threads"])


def train_with_recovery(
    trainer: PretrainTrainer,
    make: Build,
    console: Console,
    *,
    begins: Callable[[PretrainTrainer], None],
    on_epoch: OnEpoch | None,
) -> PretrainTrainer:
    """Train to the end and return the trainer, a new one after each recovery from a collapse.

    `begins` is called with each trainer before its first step.
    """
    while True:
        begins(trainer)
        try:
            trainer.fit(console, on_epoch)
        except CollapseError as collapse:
            trainer = recover(trainer, collapse, make, console)
        else:
            mark_recovered(trainer, console)
            return trainer


def recover(
    trainer: PretrainTrainer, collapse: CollapseError, make: Build, console: Console
) -> PretrainTrainer:
    """A trainer with the next remedy; raises `collapse` if no remedy is left."""
    # on rank 0: other ranks may not see the run folder
    on_rank_zero = trainer.processes.leads
    remedy = on_rank_zero(lambda: _next_remedy(trainer, collapse))
    if remedy is None:
        raise _with_tried(trainer, collapse)
    state = on_rank_zero(lambda: load_state(_checkpoint_of(trainer, remedy), "pretrain"))
    if not remedy.again:
        on_rank_zero(lambda: restore_best_checkpoint(trainer.run.file("checkpoints")))
    fresh = make(with_values(trainer.plan, remedy.values))
    fresh.fingerprint, fresh.deadline, fresh.watch = (
        trainer.fingerprint,
        trainer.deadline,
        trainer.watch,
    )
    fresh.restore(_adapted(state, fresh, remedy))
    fresh.recoveries = [
        *({**entry, "worked": False} for entry in trainer.recoveries),
        recovery_record(fresh.step, remedy, collapse.verdict),
    ]
    _show(fresh, collapse, remedy, console)
    return fresh


def _next_remedy(trainer: PretrainTrainer, collapse: CollapseError) -> Remedy | None:
    """The first remedy of a kind that was not tried yet, so tries are limited.

    None if there is none, without `--on-collapse recover`, and without a checkpoint to return to.
    """
    if trainer.s.on_collapse != "recover":
        return None
    tried = {next(iter(entry["values"])) for entry in trainer.recoveries}
    left = (
        r for r in collapse.remedies if r.kind not in tried and _checkpoint_of(trainer, r).exists()
    )
    return next(left, None)


def _checkpoint_of(trainer: PretrainTrainer, remedy: Remedy) -> Path:
    return trainer.run.file(f"checkpoints/{START if remedy.again else GOOD}")


def _with_tried(trainer: PretrainTrainer, collapse: CollapseError) -> CollapseError:
    """The collapse, with the remedies that were tried as its next step."""
    tried = "; ".join(entry["remedy"] for entry in trainer.recoveries)
    if tried:
        collapse.next_step = f"Tried: {tried}. Check the images with `unfreeze show`."
    return collapse


def _adapted(state: dict[str, Any], fresh: PretrainTrainer, remedy: Remedy) -> dict[str, Any]:
    """The checkpoint adapted to the changed settings; parts that no longer fit are reset."""
    state = {**state, "settings": as_dict(fresh.s)}
    if "queue_length" in remedy.values:
        state["bank"] = None
    if remedy.again:
        model_state = fresh.model.state_dict()
        old_state = state["model"]
        state["model"] = {
            n: old_state[n] if old_state[n].shape == t.shape else t for n, t in model_state.items()
        }
        state["optimizer"] = fresh.optimizer.state_dict()
        state["guard"], state["watch"] = fresh.guard.state(), {**state["watch"], "best": None}
    return state


def mark_recovered(trainer: PretrainTrainer, console: Console) -> None:
    """At the end of a run: mark the last remedy as successful."""
    if trainer.recoveries:
        trainer.recoveries[-1]["worked"] = True
        console.say(f"Recovered from collapse with: {trainer.recoveries[-1]['remedy']}.")


def _show(
    fresh: PretrainTrainer, collapse: CollapseError, remedy: Remedy, console: Console
) -> None:
    console.say(
        f"{collapse.sentence} Resuming from step {fresh.step:,} with {remedy.flags} ({remedy.why})."
    )
    run = fresh.run
    run.rewind_metrics(fresh.step)
    epoch = fresh.step // fresh.plan.steps_per_epoch
    record = {"step": fresh.step, "epoch": epoch, "split": "recovery"}
    run.metric({**record, **{k: v for k, v in fresh.recoveries[-1].items() if k != "values"}})
    fresh.save()
