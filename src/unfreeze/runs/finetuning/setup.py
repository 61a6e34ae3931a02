"""A fine-tuning run ready to train: from initial weights, or resumed from a checkpoint."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.checkpoints.state import has_last, load_last
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.layering import as_dict, build
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.loading.loader import steps_per_epoch
from unfreeze.errors import UsageError
from unfreeze.models.build import canonical_arch
from unfreeze.models.shape_trace import forward_flops
from unfreeze.runs.finetuning.data import LabelledListing
from unfreeze.runtime.console import Console
from unfreeze.runtime.device import pick_precision
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.threads import ThreadCount
from unfreeze.transfer.checkpoints import BEST, check_resumable, merge_settings
from unfreeze.transfer.feature_cache.policy import (
    CacheCase,
    CacheDecision,
    check_cache_settings,
    decide_cache,
    with_cache_decision,
)
from unfreeze.transfer.freezing.freeze import (
    FreezeSchedule,
    frozen_entries,
    hash_tensors,
    modules_to_pin,
)
from unfreeze.transfer.freezing.schedule import freeze_schedule
from unfreeze.transfer.head_solver import SolverCase, choose_solver, plan_with_solver
from unfreeze.transfer.initialize import FinetuneStart, build_start, network_from_card
from unfreeze.transfer.linear_sweep import SweepPlan, sweep_epochs, sweep_trials
from unfreeze.transfer.plan import (
    FinetuneFacts,
    FinetuneRecipe,
    choose_preprocess,
    last_feature_map_size,
    plan,
    with_selection,
)


@dataclass(frozen=True)
class FinetuneJob:
    """The network, its plan and its freezing schedule.

    `hashes`: of every frozen entry of the state dict, at the start. `head`: names of the head's
    parameters. `sweep`: learning rates and weight decays to try before training; `tried`: those
    that were tried, as text. `asked`: the settings as given.
    """

    network: nn.Module
    plan: FinetuneRecipe
    card: ModelCard
    schedule: FreezeSchedule
    hashes: dict[str, str]
    head: list[str]
    sweep: SweepPlan | None = None
    tried: tuple[str, ...] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that are frozen in all epochs."""
        return self.schedule.always

    @property
    def trains_head_alone(self) -> bool:
        """Whether only the new head is trained, in all epochs."""
        names = {name for name, _ in self.network.named_parameters()}
        return names - self.frozen <= set(self.head)

    @property
    def counts(self) -> tuple[int, int]:
        """(trainable, frozen) parameters."""
        sizes = {name: p.numel() for name, p in self.network.named_parameters()}
        frozen = sum(size for name, size in sizes.items() if name in self.frozen)
        return sum(sizes.values()) - frozen, frozen


@dataclass(frozen=True)
class ModelSetup:
    """A network with its new head, the freezing schedule and the preprocessing."""

    start: FinetuneStart
    schedule: FreezeSchedule
    preprocess: Preprocess
    reasons: dict[str, str]


def set_up_model(s: FinetuneSettings, data: LabelledListing) -> ModelSetup:
    """Build the network, load its weights, and choose freezing schedule and preprocessing."""
    network_start = build_start(
        s.arch,
        s.weights,
        s.stem,
        classes=len(data.index.classes),
        side=data.side,
        fetch=not s.dry_run,
        allow_partial=s.allow_partial,
        head=s.head,
    )
    sides = partial(last_feature_map_size, network_start.network)
    preprocess, reasons = choose_preprocess(s, data.side, network_start.wants, sides)
    intensity, why = data.sample.intensity(preprocess.intensity)
    preprocess = replace(preprocess, intensity=intensity)
    reasons |= {"range": why} if why else {}
    schedule = freeze_schedule(
        network_start.network, s.freeze, s.unfreeze_at, head=network_start.head, epochs=s.epochs
    )
    check_cache_settings(
        s, network_start.network, schedule, network_start.head, preprocess.image_size
    )
    return ModelSetup(network_start, schedule, preprocess, {**network_start.reasons, **reasons})


def new_job(
    s: FinetuneSettings,
    data: LabelledListing,
    network_setup: ModelSetup,
    device: torch.device,
    *,
    images: int,
    held_out: int,
    processes: int = 1,
) -> FinetuneJob:
    """A new run on `images` training images and `held_out` validation images."""
    network, frozen = network_setup.start.network, network_setup.schedule.always
    facts = FinetuneFacts(
        images=images,
        arch=network_setup.start.arch,
        stem=network_setup.start.stem,
        head_only={name for name, _ in network.named_parameters()} - frozen
        <= set(network_setup.start.head),
        trained=s.weights != "none",
        processes=processes,
    )
    chosen = plan(s, facts, network_setup.preprocess)
    for _, frozen_names in network_setup.schedule.steps:
        _check_batch_norm(network, frozen_names, chosen.batch_size)
    precision, why = pick_precision(s.precision, device)
    chosen = replace(
        chosen,
        settings=replace(chosen.settings, precision=precision),
        reasons={**network_setup.reasons, **chosen.reasons, "precision": why},
    )
    head = network_setup.start.head
    solver = ""
    if facts.head_only and frozen and len(network_setup.schedule.steps) == 1:
        case = SolverCase(network, head, network_setup.preprocess.image_size, images, held_out)
        solver, reason = choose_solver(s, case)
        chosen = replace(chosen, reasons={**chosen.reasons, "head_solver": reason})
    elif s.head_solver == "logistic":
        raise UsageError(
            "--head-solver logistic needs a frozen backbone, but other layers train too.",
            "Add --freeze all.",
        )
    sweep = None
    if solver == "logistic":
        chosen = plan_with_solver(chosen, chosen.reasons["head_solver"])
    else:
        chosen = with_selection(chosen, held_out)
        decision = decide_cache(
            chosen.settings,
            CacheCase(network, network_setup.schedule, head, images=images, held_out=held_out),
        )
        chosen = with_cache_decision(chosen, decision)
        sweep, why = _sweep(s, chosen, decision, network, facts, held_out)
        chosen = replace(chosen, reasons={**chosen.reasons, **({"sweep": why} if why else {})})
    hashes = hash_tensors(network.state_dict(), frozen_entries(network, frozen))
    card = _card(network_setup.start, chosen, data)
    return FinetuneJob(
        network, chosen, card, network_setup.schedule, hashes, head, sweep, asked=as_dict(s)
    )


def _sweep(
    s: FinetuneSettings,
    chosen: FinetuneRecipe,
    decision: CacheDecision,
    network: nn.Module,
    facts: FinetuneFacts,
    held_out: int,
) -> tuple[SweepPlan | None, str]:
    """(the sweep, its reason); (None, reason) if there is none, as without a feature cache."""
    if decision.mode == "off" or s.sweep == "off":
        return None, ""
    if s.head_lr is not None:
        return None, "none: --head-lr is given"
    if chosen.settings.select == "last" and s.select is None:
        return None, f"none: {held_out} validation images are too few"
    if chosen.settings.select != "accuracy":
        return None, f"none: it compares accuracy, but --select is {s.select}"
    if s.ema or s.clip_grad:
        return None, "none: it supports neither --ema nor --clip-grad"
    if s.lr is not None and s.weight_decay is not None:
        return None, "none: --lr and --weight-decay are given"
    if not held_out:
        return None, "none: there is no validation set"
    if decision.learner is None:
        return None, "none: it needs a single linear head"
    tried = sweep_trials(
        chosen.lr,
        chosen.weight_decay,
        free_lr=s.lr is None,
        free_decay=s.weight_decay is None,
    )
    epochs = sweep_epochs(
        s.epochs,
        steps_per_epoch(facts.images, chosen.batch_size, drop_last=False, world=facts.processes),
        images=facts.images,
        weights=sum(p.numel() for p in network.get_submodule(decision.learner).parameters()),
        heads=len(tried),
        work=decision.work,
    )
    why = f"{len(tried)} pairs of --lr and --weight-decay, {epochs} epochs each; best on validation"
    return SweepPlan(tried, epochs), why


def load_checkpoint(
    s: FinetuneSettings, data: LabelledListing, console: Console
) -> dict[str, Any] | None:
    """The checkpoint to resume from; None for a new run."""
    folder = RunFolder(str(s.out)).file("checkpoints")
    if not s.resume:
        return None
    best = (Path(BEST).name,)  # written before the last one, so it may be the only one
    if not has_last(folder, best):
        console.say(f"No checkpoint in {s.out} yet: starting from the beginning.")
        return None
    state, note = load_last(folder, "finetune", best)
    if note:
        console.say(note)
    settings = as_dict(s)
    settings["arch"] = s.arch and canonical_arch(s.arch)
    check_resumable(state, settings, data.fingerprint)
    console.say(f"Resuming from step {state['step']:,}.")
    return state


def choose_threads(
    job: FinetuneJob, threads: ThreadCount, device: torch.device, world: int
) -> tuple[int, str]:
    """(CPU threads, reason) of a new run; reason "" if the number does not matter."""
    if device.type != "cpu":
        return threads.most, ""
    s, flops = job.plan.settings, None
    if threads.most > 1 and not threads.given:
        with contextlib.suppress(UsageError):  # cannot be traced on the meta device
            flops = forward_flops(job.network, job.plan.preprocess.image_size)
            flops *= job.plan.batch_size / world / s.accumulate
    return threads.for_batches(flops)


def resumed_job(s: FinetuneSettings, state: Mapping[str, Any]) -> FinetuneJob:
    """The job of a checkpoint, with the settings that may change taken from `s`."""
    card = ModelCard.from_dict(state["card"])
    network, head = network_from_card(card)
    settings = build(FinetuneSettings, merge_settings(state, as_dict(s)))
    chosen = FinetuneRecipe(settings, Preprocess.from_dict(card.preprocess), dict(state["reasons"]))
    schedule = freeze_schedule(
        network, settings.freeze, settings.unfreeze_at, head=head, epochs=settings.epochs
    )
    notes = {"tried": tuple(state.get("tried", ())), "asked": state.get("asked", {})}
    return FinetuneJob(network, chosen, card, schedule, dict(state["frozen"]), head, **notes)


def _check_batch_norm(network: nn.Module, frozen: frozenset[str], batch_size: int) -> None:
    pinned = set(modules_to_pin(network, frozen))
    learning = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and name not in pinned
    ]
    if batch_size == 1 and learning:
        raise UsageError(
            f"--batch-size 1 is too small for the batch norm layer {learning[0]}.",
            "Use 2 or more, or freeze the batch norm layers.",
        )


def _card(network_start: FinetuneStart, chosen: FinetuneRecipe, data: LabelledListing) -> ModelCard:
    loaded, s = network_start.loaded, chosen.settings
    return ModelCard(
        kind="classifier",
        arch=network_start.arch,
        stem=network_start.stem,
        head=s.head,
        classes=data.index.classes,
        preprocess=chosen.preprocess.as_dict(),
        provenance={
            "verb": "finetune",
            "weights": loaded.source if loaded else "none",
            "weights_matched": loaded.share if loaded else None,
            **({"licence": loaded.licence} if loaded and loaded.licence else {}),
            "freeze": s.freeze,
            "unfreeze_at": s.unfreeze_at,
            "seed": s.seed,
            "fingerprint": data.fingerprint,
        },
    )
