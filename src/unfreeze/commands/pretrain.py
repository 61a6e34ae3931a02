"""`pretrain`: self-supervised pretraining with SwAV on unlabelled images."""

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, overload

import numpy as np

from unfreeze.checkpoints.state import has_last, load_last, load_state
from unfreeze.commands.report import write_report_or_warn
from unfreeze.config.field import inputs_of
from unfreeze.config.layering import as_dict, load_settings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.config.shared import Data
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.errors import UsageError
from unfreeze.evaluation.warnings import RunWarning
from unfreeze.models.load_weights import LoadedWeights
from unfreeze.reports.results_runs import plan_rows, pretrain_display, pretrain_plan_display
from unfreeze.runs.pretraining.artifacts import (
    facts_of,
    write_initial_config,
    write_model,
    write_start,
)
from unfreeze.runs.pretraining.autotune import ComputeSettings, choose_way, default_way, show_choice
from unfreeze.runs.pretraining.collapse_recovery import kept, train_with_recovery
from unfreeze.runs.pretraining.data import UnlabelledDataset
from unfreeze.runs.pretraining.dry_run import (
    Forecast,
    Make,
    forecast,
    pretrain_cost,
    show_forecast,
    show_pretrain_cost,
)
from unfreeze.runs.pretraining.evaluation_data import evaluation_sample, evaluation_summary
from unfreeze.runs.pretraining.initialize import inherit_head
from unfreeze.runs.pretraining.setup import PreparedPretraining, prepare_pretraining
from unfreeze.runs.python_call import python_call
from unfreeze.runs.run_warnings import pretrain_warnings, show_result_warnings, write_warnings
from unfreeze.runs.time_budget import budget_pretrain, pretrain_hint, show_hint, with_budget_choice
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.bottleneck import ThroughputSettings, bottleneck
from unfreeze.runtime.console import Console, LoggingConsole, QuietConsole
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.distributed import Distributed, init_distributed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.launcher import detect_launcher
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.run_folder import RESULT, RunFolder, check_run_folder, read_metrics
from unfreeze.runtime.run_lock import RunFolderLocks
from unfreeze.runtime.threads import restored_threads, set_threads
from unfreeze.runtime.time_limit import HOUR, TimeLimit
from unfreeze.runtime.trackers import check_loggers, logging_to
from unfreeze.swav.auto_recipe import PretrainRecipe
from unfreeze.swav.feature_evaluation import FeatureEvaluator
from unfreeze.swav.throughput import StepConfig
from unfreeze.swav.trainer import OnEpoch, PretrainTrainer


@dataclass(frozen=True, repr=False)
class PretrainResult(Displayed):
    """The result of a pretraining run; `loss` is the mean of the last record, None for 0 epochs.

    `figures`: metrics of the last feature evaluation that need no labels. `knn`: k-NN accuracy,
    correct, total and split of the last evaluation, and accuracy of the untrained network; None
    without labels. `best`: epoch (counted from 1), metric, value and checkpoint of the best
    evaluation. `kept`: "last" or "best", the weights in `model`. `recoveries`: settings changed
    after a collapse, and whether that helped. `warnings`: see `RunWarning`.
    """

    run: str
    arch: str
    epochs: int
    steps: int
    images: int
    processes: int
    loss: float | None
    images_per_second: float | None
    seconds: float
    model: str
    kept: str
    figures: dict[str, float]
    knn: dict[str, Any] | None
    best: dict[str, Any] | None
    recoveries: list[dict[str, Any]]
    warnings: list[RunWarning]

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return pretrain_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """The records of the run's metrics.jsonl."""
        return read_metrics(self.run)


@dataclass(frozen=True, repr=False)
class PretrainPlan(Displayed, Forecast):
    """The result of `--dry-run`: settings, reasons of the derived ones, steps and cost."""

    settings: dict[str, Any]
    reasons: dict[str, str]
    images: int
    steps: int
    steps_per_epoch: int

    shown_before: ClassVar[bool] = True

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return pretrain_plan_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per derived setting: its value and the reason."""
        return plan_rows(self)


@overload
def pretrain(data: Data, *, dry_run: Literal[False] = False, **settings: Any) -> PretrainResult: ...


@overload
def pretrain(data: Data, *, dry_run: Literal[True], **settings: Any) -> PretrainPlan: ...


@overload
def pretrain(data: Data, **settings: Any) -> PretrainResult | PretrainPlan: ...


@python_call(PretrainSettings)
def pretrain(
    data: Data, *, progress: bool | None = None, **settings: Any
) -> PretrainResult | PretrainPlan:
    """Pretrain with SwAV on the images of `data`, without labels.

    Returns a `PretrainPlan` with `dry_run=True`. Raises the errors of `unfreeze.errors`.
    """
    began = time.monotonic()
    given = load_settings(PretrainSettings, {"data": data, **settings})
    return run_pretrain(given, python_console(progress), began=began)


@isolated()
def run_pretrain(
    settings: PretrainSettings,
    console: Console,
    *,
    on_epoch: OnEpoch | None = None,
    began: float | None = None,
) -> PretrainResult | PretrainPlan:
    """The same from a settings object; `on_epoch` is called after each epoch.

    `began`: time.monotonic() from which `time_limit` counts; None: the start of the process.
    """
    check_loggers(settings.logger)
    deadline = TimeLimit.of(settings.time_limit, began)
    if settings.dry_run:
        return plan_pretrain(settings, console)
    if not settings.out:
        raise UsageError("pretrain needs a run folder.", "Add --out RUN, or --dry-run.")
    with RunFolderLocks() as locks:
        return _trained(settings, console, deadline, locks, on_epoch)


def _trained(
    settings: PretrainSettings,
    console: Console,
    deadline: TimeLimit,
    locks: RunFolderLocks,
    on_epoch: OnEpoch | None,
) -> PretrainResult:
    started, out = time.monotonic(), str(settings.out)
    processes = init_distributed(settings.device)
    console = LoggingConsole(console if processes.first else QuietConsole())
    folder_options: dict[str, Any] = {"resume": settings.resume, "overwrite": settings.overwrite}
    folder_options["inputs"] = inputs_of(settings)
    processes.leads(lambda: check_run_folder(out, **folder_options))
    processes.leads(lambda: locks.take_existing(out))
    given = settings
    # measured on rank 0 alone: all ranks must use the same values
    budgeted, why = processes.leads(lambda: budget_pretrain(given, processes.world, _default_maker))
    settings = with_budget_choice(given, budgeted)
    # rank 0 first: the others read its downloads from disk
    prepared = processes.in_turn(
        lambda: prepare_pretraining(settings, console, processes.world, why)
    )
    dataset = prepared.checked(processes, console)
    # as late as possible: --overwrite deletes the old run
    processes.leads(lambda: RunFolder.create(out, **folder_options, hold=locks.take))
    run = RunFolder(out, writes=processes.first)
    processes.leads(lambda: write_initial_config(run, settings))
    console.into(run)
    chosen, threads = processes.leads(lambda: kept(prepared.planned(dataset), run, console))
    device, room = prepared.place.device, prepared.facts.room
    device_images = processes.together(lambda: dataset.held(chosen.settings, device, room))
    make = partial(prepared.trainer, dataset=dataset, processes=processes, held=device_images)
    flops = prepared.operations(chosen, processes.world)
    way = partial(choose_way, chosen, prepared.place, run, processes, partial(make, chosen))
    tuning = processes.together(lambda: way(operations=flops, previous=threads))
    show_choice(tuning, console)

    def make_trainer(plan: PretrainRecipe) -> PretrainTrainer:
        return processes.together(lambda: make(plan, tuning.way, run=run))

    trainer = make_trainer(chosen)
    inherit_head(trainer.model, prepared.start, prepared.reasons, console)
    trainer.deadline = deadline
    trainer.watch = processes.together(lambda: _watch(trainer, dataset, prepared.found, console))
    # of rank 0: modification times differ between copies of the data on several machines
    _resume(trainer, run, processes.leads(lambda: dataset.fingerprint), console)
    reasons = {**prepared.reasons, **chosen.reasons, **tuning.reasons}
    _show_cost(prepared, trainer, tuning, console, given)
    with logging_to(settings.logger, run, as_dict(chosen.settings), trainer.step, console):

        def begins(trainer: PretrainTrainer) -> None:
            processes.leads(lambda: write_start(trainer, dataset, reasons, tuning.tables()))

        trainer = train_with_recovery(
            trainer, make_trainer, console, begins=begins, on_epoch=on_epoch
        )
    processes.leads(lambda: _write_model(trainer, dataset, prepared.start.loaded, console))
    return _finish(trainer, dataset, started, console)


def _finish(
    trainer: PretrainTrainer, dataset: UnlabelledDataset, started: float, console: Console
) -> PretrainResult:
    """The result of a run that began at `started`, with its warnings; both are written."""
    on_rank_zero = trainer.processes.leads
    warnings = on_rank_zero(lambda: _warnings(trainer, dataset, console))
    seconds = time.monotonic() - started
    result = _result(trainer.run, trainer.plan, trainer, len(dataset.train), seconds, warnings)
    on_rank_zero(lambda: _write_result(result, trainer, dataset, console))
    return result


def _warnings(
    trainer: PretrainTrainer, dataset: UnlabelledDataset, console: Console
) -> list[RunWarning]:
    """Collect the warnings, write them for the report, and show them."""
    warnings = pretrain_warnings(trainer, dataset)
    write_warnings(warnings, trainer.run)
    show_result_warnings(warnings, console, json=trainer.s.json, run=trainer.run)
    return warnings


def _write_model(
    trainer: PretrainTrainer,
    dataset: UnlabelledDataset,
    loaded: LoadedWeights | None,
    console: Console,
) -> None:
    if trainer.s.keep == "best" and trainer.watch.best:
        best = load_state(trainer.run.file("checkpoints/best.ckpt"))
        trainer.model.load_state_dict(best["model"])
    write_model(trainer, dataset, loaded, console)


def _write_result(
    result: PretrainResult, trainer: PretrainTrainer, dataset: UnlabelledDataset, console: Console
) -> None:
    """Write result.json, which marks the run as finished, and the report."""
    write_json(trainer.run.file(RESULT), asdict(result))
    write_report_or_warn(str(trainer.run.path), console)
    if message := bottleneck(
        trainer.run.metrics(), ThroughputSettings.of(facts_of(trainer, dataset))
    ):
        console.say(message)


def plan_pretrain(settings: PretrainSettings, console: Console) -> PretrainPlan:
    """The plan of a run; writes no file."""
    given, world = settings, detect_launcher().world
    settings, why = budget_pretrain(given, world, _default_maker)
    prepared = prepare_pretraining(settings, console, world, why)
    chosen = prepared.plan
    flops = prepared.operations(chosen, world)

    way = default_way(chosen.settings, prepared.place, 1, flops)
    set_threads(way.threads)
    make = _noise_maker(prepared, chosen, way)
    result = forecast(chosen, prepared.facts, make)
    show_forecast(chosen, result, console)
    _hint(result.time, given, world, console)
    return PretrainPlan(
        **vars(result),
        settings=as_dict(chosen.settings),
        reasons=prepared.reasons,
        images=prepared.facts.images,
        steps=chosen.steps,
        steps_per_epoch=chosen.steps_per_epoch,
    )


def _show_cost(
    prepared: PreparedPretraining,
    trainer: PretrainTrainer,
    tuning: ComputeSettings,
    console: Console,
    given: PretrainSettings,
) -> None:
    """Show time and memory of the remaining steps; measured on rank 0, the others wait."""
    plan, done = trainer.plan, trainer.step

    def show() -> None:
        make = _noise_maker(prepared, plan, tuning.way)
        measured = tuning.measured
        costs = pretrain_cost(plan, prepared.facts, trainer, make, done=done, measured=measured)
        show_pretrain_cost(plan, costs, console)
        _hint(costs["time"], given, prepared.facts.processes, console)

    if done < plan.steps:
        trainer.processes.leads(show)


def _hint(
    time_use: dict[str, Any], given: PretrainSettings, processes: int, console: Console
) -> None:
    """If a run takes more than an hour, show what fits into one."""
    if given.time_budget is None and not given.resume and (time_use["seconds"] or 0) > HOUR:
        with restored_threads():
            time_use["fits_one_hour"] = pretrain_hint(given, processes, _default_maker)
        show_hint(time_use["fits_one_hour"], console)


def _default_maker(prepared: PreparedPretraining) -> Make:
    """Makes trainers over random images with the default threads and precision; sets threads."""
    flops = prepared.operations(prepared.plan, prepared.facts.processes)
    way = default_way(prepared.plan.settings, prepared.place, 1, flops)
    set_threads(way.threads)
    return _noise_maker(prepared, prepared.plan, way)


def _noise_maker(prepared: PreparedPretraining, chosen: PretrainRecipe, way: StepConfig) -> Make:
    """Makes single-process trainers over random images."""

    def make(images: ImageDataset, positions: Any) -> PretrainTrainer:
        alone = replace(chosen, settings=replace(chosen.settings, sync_bn="none"))
        dataset = replace(prepared.found, images=images, train=positions)
        device_images = dataset.held(alone.settings, prepared.place.device, prepared.facts.room)
        return prepared.trainer(
            alone, way, dataset=dataset, processes=Distributed(), held=device_images
        )

    return make


def _watch(
    trainer: PretrainTrainer,
    dataset: UnlabelledDataset,
    listed: UnlabelledDataset,
    console: Console,
) -> FeatureEvaluator:
    s = trainer.s
    evaluates = s.watch_every and s.epochs and trainer.processes.first
    return FeatureEvaluator(
        evaluation_sample(s, dataset, listed.index, console) if evaluates else None,
        s.watch_every or 0,
    )


def _resume(trainer: PretrainTrainer, run: RunFolder, fingerprint: str, console: Console) -> None:
    trainer.fingerprint = fingerprint
    if not trainer.s.resume:
        return
    processes, folder = trainer.processes, run.file("checkpoints")
    # read on rank 0 alone: all ranks must resume from the same checkpoint
    checkpoint = processes.leads(
        lambda: load_last(folder, "pretrain") if has_last(folder) else None
    )
    if checkpoint is None:
        console.say(f"No checkpoint in {run.path} yet: starting from the beginning.")
    else:
        state, note = checkpoint
        for message in (note, *processes.together(lambda: trainer.restore(state))):
            if message:
                console.say(message)
    processes.leads(lambda: run.rewind_metrics(-1 if checkpoint is None else trainer.step))
    if checkpoint is not None:
        console.say(f"Resuming from step {trainer.step:,} of {trainer.plan.steps:,}.")


def _result(
    run: RunFolder,
    chosen: PretrainRecipe,
    trainer: PretrainTrainer,
    images: int,
    seconds: float,
    warnings: list[RunWarning],
) -> PretrainResult:
    rates = [r["images_per_second"] for r in run.metrics() if r.get("split") == "train"]
    return PretrainResult(
        run=str(run.path),
        arch=chosen.settings.arch or "",
        epochs=chosen.settings.epochs or 0,
        steps=trainer.step,
        images=images,
        processes=trainer.processes.world,
        loss=trainer.loss if math.isfinite(trainer.loss) else None,
        images_per_second=float(np.median(rates)) if rates else None,
        seconds=round(seconds, 3),
        model=str(run.file("model")),
        kept=chosen.settings.keep,
        recoveries=trainer.recoveries,
        warnings=warnings,
        **evaluation_summary(trainer.watch, run),
    )
