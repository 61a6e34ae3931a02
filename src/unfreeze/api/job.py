"""A fine-tuning run ready to train: from initial weights, or resumed from a checkpoint."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unfreeze.api.labelling import Labelled
from unfreeze.backbones.build import canonical
from unfreeze.backbones.trace import operations
from unfreeze.checkpoints.modelfile import ModelCard
from unfreeze.checkpoints.state import has_last, load_last
from unfreeze.data.loader import steps_of
from unfreeze.data.preprocess import Preprocess
from unfreeze.errors import UsageError
from unfreeze.runtime.console import Console
from unfreeze.runtime.devices import pick_precision
from unfreeze.runtime.runfolder import RunFolder
from unfreeze.runtime.threads import Threads
from unfreeze.settings.build import as_dict, build
from unfreeze.settings.finetune import FinetuneSettings
from unfreeze.transfer.freeze import FreezeSchedule, fingerprint, standing, to_pin
from unfreeze.transfer.grid import Sweep, pairs, sweep_epochs
from unfreeze.transfer.head_solver import SolverCase, choose_solver, solved
from unfreeze.transfer.maps import final_map
from unfreeze.transfer.plan import Facts, Plan, choose_preprocess, plan, selected
from unfreeze.transfer.resuming import check_resumable, merged
from unfreeze.transfer.saves import BEST
from unfreeze.transfer.savings import Case, Decision, check_asked, decide, settled
from unfreeze.transfer.start import Start, from_card, start
from unfreeze.transfer.thaw import freeze_schedule


@dataclass(frozen=True)
class Job:
    """The network, its plan and its freezing schedule.

    `hashes`: of every frozen entry of the state dict, at the start. `head`: names of the head's
    parameters. `sweep`: learning rates and weight decays to try before training; `tried`: those
    that were tried, as text. `asked`: the settings as given.
    """

    network: nn.Module
    plan: Plan
    card: ModelCard
    schedule: FreezeSchedule
    hashes: dict[str, str]
    head: list[str]
    sweep: Sweep | None = None
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
class Opened:
    """A network with its new head, the freezing schedule and the preprocessing."""

    start: Start
    schedule: FreezeSchedule
    preprocess: Preprocess
    reasons: dict[str, str]


def opened(s: FinetuneSettings, data: Labelled) -> Opened:
    """Build the network, load its weights, and choose freezing schedule and preprocessing."""
    network_start = start(
        s.arch,
        s.weights,
        s.stem,
        classes=len(data.index.classes),
        side=data.side,
        fetch=not s.dry_run,
        allow_partial=s.allow_partial,
        head=s.head,
    )
    sides = partial(final_map, network_start.network)
    preprocess, reasons = choose_preprocess(s, data.side, network_start.wants, sides)
    intensity, why = data.sample.intensity(preprocess.intensity)
    preprocess = replace(preprocess, intensity=intensity)
    reasons |= {"range": why} if why else {}
    schedule = freeze_schedule(
        network_start.network, s.freeze, s.unfreeze_at, head=network_start.head, epochs=s.epochs
    )
    check_asked(s, network_start.network, schedule, network_start.head, preprocess.image_size)
    return Opened(network_start, schedule, preprocess, {**network_start.reasons, **reasons})


def begun(
    s: FinetuneSettings,
    data: Labelled,
    network_setup: Opened,
    device: torch.device,
    *,
    images: int,
    held_out: int,
    processes: int = 1,
) -> Job:
    """A new run on `images` training images and `held_out` validation images."""
    network, frozen = network_setup.start.network, network_setup.schedule.always
    facts = Facts(
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
        chosen = solved(chosen, chosen.reasons["head_solver"])
    else:
        chosen = selected(chosen, held_out)
        decision = decide(
            chosen.settings,
            Case(network, network_setup.schedule, head, images=images, held_out=held_out),
        )
        chosen = settled(chosen, decision)
        sweep, why = _sweep(s, chosen, decision, network, facts, held_out)
        chosen = replace(chosen, reasons={**chosen.reasons, **({"sweep": why} if why else {})})
    hashes = fingerprint(network.state_dict(), standing(network, frozen))
    card = _card(network_setup.start, chosen, data)
    return Job(network, chosen, card, network_setup.schedule, hashes, head, sweep, asked=as_dict(s))


def _sweep(
    s: FinetuneSettings,
    chosen: Plan,
    decision: Decision,
    network: nn.Module,
    facts: Facts,
    held_out: int,
) -> tuple[Sweep | None, str]:
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
    tried = pairs(
        chosen.lr,
        chosen.weight_decay,
        free_lr=s.lr is None,
        free_decay=s.weight_decay is None,
    )
    epochs = sweep_epochs(
        s.epochs,
        steps_of(facts.images, chosen.batch_size, drop_last=False, world=facts.processes),
        images=facts.images,
        weights=sum(p.numel() for p in network.get_submodule(decision.learner).parameters()),
        heads=len(tried),
        work=decision.work,
    )
    why = f"{len(tried)} pairs of --lr and --weight-decay, {epochs} epochs each; best on validation"
    return Sweep(tried, epochs), why


def checkpoint(s: FinetuneSettings, data: Labelled, console: Console) -> dict[str, Any] | None:
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
    settings["arch"] = s.arch and canonical(s.arch)
    check_resumable(state, settings, data.fingerprint)
    console.say(f"Resuming from step {state['step']:,}.")
    return state


def threads_of(job: Job, threads: Threads, device: torch.device, world: int) -> tuple[int, str]:
    """(CPU threads, reason) of a new run; reason "" if the number does not matter."""
    if device.type != "cpu":
        return threads.most, ""
    s, flops = job.plan.settings, None
    if threads.most > 1 and not threads.given:
        with contextlib.suppress(UsageError):  # cannot be traced on the meta device
            flops = operations(job.network, job.plan.preprocess.image_size)
            flops *= job.plan.batch_size / world / s.accumulate
    return threads.for_batches(flops)


def continued(s: FinetuneSettings, state: Mapping[str, Any]) -> Job:
    """The job of a checkpoint, with the settings that may change taken from `s`."""
    card = ModelCard.from_dict(state["card"])
    network, head = from_card(card)
    settings = build(FinetuneSettings, merged(state, as_dict(s)))
    chosen = Plan(settings, Preprocess.from_dict(card.preprocess), dict(state["reasons"]))
    schedule = freeze_schedule(
        network, settings.freeze, settings.unfreeze_at, head=head, epochs=settings.epochs
    )
    notes = {"tried": tuple(state.get("tried", ())), "asked": state.get("asked", {})}
    return Job(network, chosen, card, schedule, dict(state["frozen"]), head, **notes)


def _check_batch_norm(network: nn.Module, frozen: frozenset[str], batch_size: int) -> None:
    pinned = set(to_pin(network, frozen))
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


def _card(network_start: Start, chosen: Plan, data: Labelled) -> ModelCard:
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
