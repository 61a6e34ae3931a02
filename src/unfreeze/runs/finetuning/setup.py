"""A fine-tuning run ready to train: from initial weights, or resumed from a checkpoint."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.checkpoints.state import BEST_CHECKPOINT, has_last, load_last
from unfreeze.config.finetune import TEXT_CLASSIFICATION, FinetuneSettings
from unfreeze.config.layering import as_dict, build
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.loading.loader import steps_per_epoch
from unfreeze.data.texts.preprocess import TextPreprocess, token_counts
from unfreeze.data.texts.source import TextSource
from unfreeze.errors import UsageError
from unfreeze.models.build import canonical_arch
from unfreeze.models.lora import frozen_with_lora, is_adapter
from unfreeze.models.precision import pick_training_precision
from unfreeze.models.shape_trace import forward_flops
from unfreeze.models.text import TextClassifier
from unfreeze.runs.finetuning.data import LabelledListing
from unfreeze.runs.finetuning.resume import check_resumable, merge_settings
from unfreeze.runtime.console import Console
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.threads import ThreadCount
from unfreeze.tasks.supervised import SupervisedTask
from unfreeze.transfer.adapters import (
    LORA_CACHE,
    adapter_parameters,
    check_lora_settings,
    put_adapters,
)
from unfreeze.transfer.feature_cache.policy import (
    CacheCase,
    CacheDecision,
    check_cache_settings,
    decide_cache,
    with_cache_decision,
)
from unfreeze.transfer.freezing.freeze import (
    FreezeSchedule,
    constant_schedule,
    frozen_entries,
    hash_tensors,
    modules_to_pin,
)
from unfreeze.transfer.freezing.schedule import freeze_schedule
from unfreeze.transfer.head_solver import SolverCase, choose_solver, plan_with_solver
from unfreeze.transfer.initialize import (
    FinetuneStart,
    build_segmentation_start,
    build_start,
    network_from_card,
    preprocess_of,
    size_note,
)
from unfreeze.transfer.linear_sweep import SweepPlan, sweep_epochs, sweep_trials
from unfreeze.transfer.plan import (
    ENOUGH_MAPS,
    ENOUGH_TO_CHOOSE,
    FinetuneFacts,
    FinetuneRecipe,
    choose_preprocess,
    last_feature_map_size,
    plan,
    preprocess_of_maps,
    with_defaults,
    with_selection,
)
from unfreeze.transfer.texts.initialize import build_text_start


@dataclass(frozen=True)
class FinetuneJob:
    """The network, its plan and its freezing schedule.

    `hashes`: of every frozen entry of the state dict, at the start. `head`: names of the head's
    parameters. `sweep`: learning rates and weight decays to try before training; `tried`: those
    that were tried, as text. `asked`: the settings as given. `task`: None for classification.
    `adapters`: number of parameters of the low-rank adapters.
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
    task: SupervisedTask | None = None
    adapters: int = 0

    @property
    def texts(self) -> bool:
        """Whether the samples are texts."""
        return self.card.task == TEXT_CLASSIFICATION

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
        if self.plan.settings.lora:
            return self._counts_with_lora(sizes)
        frozen = sum(size for name, size in sizes.items() if name in self.frozen)
        return sum(sizes.values()) - frozen, frozen

    def _counts_with_lora(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """The same before and after the adapters are merged."""
        head = sum(size for name, size in sizes.items() if name in self.head)
        adapters = sum(size for name, size in sizes.items() if is_adapter(name))
        return head + self.adapters, sum(sizes.values()) - adapters - head


@dataclass(frozen=True)
class ModelSetup:
    """A network with its new head, the freezing schedule and the preprocessing."""

    start: FinetuneStart
    schedule: FreezeSchedule
    preprocess: Preprocess
    reasons: dict[str, str]


def set_up_model(s: FinetuneSettings, data: LabelledListing) -> ModelSetup:
    """Build the network, load its weights, and choose freezing schedule and preprocessing."""
    s = with_defaults(s, texts=data.texts)
    check_lora_settings(s, dense=data.dense)
    load: dict[str, Any] = {"fetch": not s.dry_run, "allow_partial": s.allow_partial}
    load["outputs"] = data.task.outputs if data.task else len(data.index.classes)
    reasons: dict[str, str] = {}
    if data.texts:
        network_start = build_text_start(
            s.arch, s.weights, head=s.head, max_length=s.max_length, **load
        )
        network_start.task_state["columns"] = {"text": s.text_column, "pair": s.text_pair_column}
        preprocess = network_start.wants or Preprocess(0, 0)
        reasons = {"max_length": _lengths(data, network_start, preprocess)}
    elif data.task is not None and data.task.dense:
        network_start = build_segmentation_start(s.arch, s.weights, **load)
        preprocess, reasons = preprocess_of_maps(s, data.sample, network_start.wants)
    else:
        network_start = build_start(s.arch, s.weights, s.stem, side=data.side, head=s.head, **load)
        sides = partial(last_feature_map_size, network_start.network)
        preprocess, reasons = choose_preprocess(s, data.sample, network_start.wants, sides)
        if note := size_note(network_start, preprocess.image_size):
            reasons["image_size"] += f"; {note}"
    if not data.texts:
        intensity, why = data.sample.intensity(preprocess.intensity)
        preprocess = replace(preprocess, intensity=intensity)
        reasons |= {"range": why} if why else {}
    if s.lora:
        reasons["lora"] = put_adapters(network_start.network, s.lora, network_start.arch)
    schedule = _schedule(s, network_start.network, network_start.head)
    if data.task is None or not data.task.dense:
        check_cache_settings(
            s, network_start.network, schedule, network_start.head, preprocess.image_size
        )
    return ModelSetup(network_start, schedule, preprocess, {**network_start.reasons, **reasons})


def _schedule(s: FinetuneSettings, network: nn.Module, head: list[str]) -> FreezeSchedule:
    """The freezing schedule of a network that has its adapters."""
    if s.lora:
        return constant_schedule(frozen_with_lora(network, head))
    return freeze_schedule(network, s.freeze, s.unfreeze_at, head=head, epochs=s.epochs or 0)


def _lengths(data: LabelledListing, start: FinetuneStart, preprocess: Preprocess) -> str:
    """Tell the network how long the texts are; the reason for their limit, with what it cuts."""
    source = data.index.source
    if not isinstance(preprocess, TextPreprocess) or not isinstance(source, TextSource):
        raise TypeError("texts need a tokenizer")
    rows = np.unique(np.linspace(0, len(data.index) - 1, LENGTHS).astype(np.int64))
    mean, cut = token_counts(preprocess, source, data.index.rows[rows].tolist())
    if isinstance(start.network, TextClassifier):
        start.network.example_tokens = max(2, round(mean))
    of = "texts" if len(rows) == len(data.index) else f"{len(rows):,} texts"
    why = start.reasons["max_length"]
    return f"{why}; {cut:.1%} of {of} are longer, {mean:.0f} tokens on average"


LENGTHS = 1000  # texts to count tokens of
BATCH_NORM = nn.modules.batchnorm._BatchNorm
NO_CACHE = CacheDecision("off", reasons={"cache": "a decoder needs maps of all sizes"})


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
    asked, s = s, with_defaults(s, texts=data.texts)
    network, frozen = network_setup.start.network, network_setup.schedule.always
    facts = _facts(s, data, network_setup, images, processes)
    chosen = plan(s, facts, network_setup.preprocess)
    for _, frozen_names in network_setup.schedule.steps:
        _check_batch_norm(network, frozen_names, chosen.batch_size)
    precision, why = pick_training_precision(s.precision, device, network, frozen)
    chosen = replace(
        chosen,
        settings=replace(chosen.settings, precision=precision),
        reasons={**network_setup.reasons, **chosen.reasons, "precision": why},
    )
    head = network_setup.start.head
    alone = facts.head_only and frozen and len(network_setup.schedule.steps) == 1
    solver, reason = _head_solver(
        asked, SolverCase(network, head, network_setup.preprocess.image_size, images, held_out),
        alone=bool(alone), task=data.task,
    )  # fmt: skip
    if reason:
        chosen = replace(chosen, reasons={**chosen.reasons, "head_solver": reason})
    sweep = None
    if solver == "logistic":
        chosen = plan_with_solver(chosen, chosen.reasons["head_solver"])
    else:
        if data.task is None:
            chosen = with_selection(chosen, held_out)
        else:
            enough = ENOUGH_MAPS if data.task.dense else ENOUGH_TO_CHOOSE
            chosen = with_selection(chosen, held_out, "metric", enough)
        case = CacheCase(network, network_setup.schedule, head, images=images, held_out=held_out)
        impossible = _no_cache(s, data)
        decision = impossible or decide_cache(chosen.settings, case)
        chosen = with_cache_decision(chosen, decision)
        sweep, why = _sweep(s, chosen, decision, network, facts, held_out)
        chosen = replace(chosen, reasons={**chosen.reasons, **({"sweep": why} if why else {})})
    hashes = hash_tensors(network.state_dict(), frozen_entries(network, frozen))
    card = _card(network_setup.start, chosen, data)
    return FinetuneJob(
        network,
        chosen,
        card,
        network_setup.schedule,
        hashes,
        head,
        sweep,
        asked=as_dict(asked),
        task=data.task,
        adapters=adapter_parameters(network),
    )


def _no_cache(s: FinetuneSettings, data: LabelledListing) -> CacheDecision | None:
    """Why no run of this kind can cache features; None if it may."""
    return NO_CACHE if data.dense else LORA_CACHE if s.lora else None


def _facts(
    s: FinetuneSettings, data: LabelledListing, setup: ModelSetup, images: int, processes: int
) -> FinetuneFacts:
    names = {name for name, _ in setup.start.network.named_parameters()}
    return FinetuneFacts(
        images=images,
        arch=setup.start.arch,
        stem=setup.start.stem,
        head_only=names - setup.schedule.always <= set(setup.start.head),
        trained=s.weights != "none",
        batch_norm=any(isinstance(m, BATCH_NORM) for m in setup.start.network.modules()),
        processes=processes,
        lr_scale=data.task.lr_scale if data.task else 1.0,
        texts=data.texts,
        masks=data.dense,
        lora=bool(s.lora),
    )


def _head_solver(
    s: FinetuneSettings, case: SolverCase, *, alone: bool, task: SupervisedTask | None
) -> tuple[str, str]:
    """(`logistic`, `sgd` or "", the reason); `alone`: only the head is trained in all epochs."""
    if alone:
        return choose_solver(s, case) if task is None else ("sgd", "")
    if s.head_solver == "logistic":
        raise UsageError(
            "--head-solver logistic needs a frozen backbone, but other layers train too.",
            "Add --freeze all.",
        )
    return "", ""


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
    if chosen.settings.select in ("metric", "miou"):
        return None, "none: it compares accuracy"
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
        chosen.settings.epochs or 0,
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
    best = (BEST_CHECKPOINT,)  # written before the last one, so it may be the only one
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


def resumed_job(
    s: FinetuneSettings, state: Mapping[str, Any], task: SupervisedTask | None
) -> FinetuneJob:
    """The job of a checkpoint, with the settings that may change taken from `s`.

    `task`: that of the data; it gets the state of the checkpoint.
    """
    card = ModelCard.from_dict(state["card"])
    if task is not None:
        task.outputs = card.outputs
        task.load_state_dict(card.task_state)
    network, head = network_from_card(card)
    settings = build(FinetuneSettings, merge_settings(state, as_dict(s)))
    preprocess = preprocess_of(card, str(s.out))
    chosen = FinetuneRecipe(settings, preprocess, dict(state["reasons"]))
    if settings.lora:
        put_adapters(network, settings.lora, card.arch)
    schedule = _schedule(settings, network, head)
    notes: dict[str, Any] = {
        "tried": tuple(state.get("tried", ())),
        "asked": state.get("asked", {}),
        "task": task,
        "adapters": adapter_parameters(network),
    }
    return FinetuneJob(network, chosen, card, schedule, dict(state["frozen"]), head, **notes)


def _check_batch_norm(network: nn.Module, frozen: frozenset[str], batch_size: int) -> None:
    pinned = set(modules_to_pin(network, frozen))
    learning = [
        name
        for name, module in network.named_modules()
        if isinstance(module, BATCH_NORM) and name not in pinned
    ]
    if batch_size == 1 and learning:
        raise UsageError(
            f"--batch-size 1 is too small for the batch norm layer {learning[0]}.",
            "Use 2 or more, or freeze the batch norm layers.",
        )


def _card(network_start: FinetuneStart, chosen: FinetuneRecipe, data: LabelledListing) -> ModelCard:
    loaded, s = network_start.loaded, chosen.settings
    return ModelCard(
        kind="predictor" if data.task else "classifier",
        arch=network_start.arch,
        stem=network_start.stem,
        head=s.head,
        classes=data.task.classes if data.task else data.index.classes,
        task=data.task_name,
        outputs=data.task.outputs if data.task else 0,
        task_state=data.task.state_dict() if data.task else network_start.task_state,
        preprocess=chosen.preprocess.as_dict(),
        provenance={
            "verb": "finetune",
            "weights": loaded.source if loaded else "none",
            "weights_matched": loaded.share if loaded else None,
            **(loaded.terms if loaded else {}),
            **({"lora": s.lora} if s.lora else {}),
            "freeze": s.freeze,
            "unfreeze_at": s.unfreeze_at,
            "seed": s.seed,
            "fingerprint": data.fingerprint,
        },
    )
