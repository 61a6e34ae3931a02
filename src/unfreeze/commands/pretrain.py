"""`pretrain`: self-supervised pretraining with SwAV on unlabelled images."""

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, overload

import numpy as np

from unfreeze.commands.report import write_report_or_warn
from unfreeze.config.field import inputs_of
from unfreeze.config.layering import as_dict, load_settings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.config.shared import Data
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.errors import UsageError
from unfreeze.evaluation.warnings import RunWarning
from unfreeze.reports.bottleneck import ThroughputSettings, bottleneck
from unfreeze.reports.results_runs import plan_rows, pretrain_display, pretrain_plan_display
from unfreeze.runs.pretraining.artifacts import (
    facts_of,
    write_initial_config,
    write_model,
    write_start,
)
from unfreeze.runs.pretraining.autotune import ComputeSettings, choose_way, default_way, show_choice
from unfreeze.runs.pretraining.data import UnlabelledDataset
from unfreeze.runs.pretraining.dry_run import (
    Forecast,
    Make,
    forecast,
    pretrain_cost,
    show_forecast,
    show_pretrain_cost,
)
from unfreeze.runs.pretraining.evaluation_data import evaluation_summary, kept_weights
from unfreeze.runs.pretraining.initialize import inherit_head
from unfreeze.runs.pretraining.resume import checkpoint_threads, resume_trainer
from unfreeze.runs.pretraining.setup import (
    CallbackOptions,
    PreparedPretraining,
    prepare_pretraining,
)
from unfreeze.runs.python_call import python_call
from unfreeze.runs.run_warnings import pretrain_warnings, show_result_warnings, write_warnings
from unfreeze.runs.time_budget import budget_pretrain, pretrain_hint, show_hint, with_budget_choice
from unfreeze.runtime.atomic import write_json
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
from unfreeze.swav.presets import method_hint
from unfreeze.swav.throughput import StepConfig
from unfreeze.training.callbacks import OnEpoch
from unfreeze.training.feature_evaluation import FeatureEvaluator
from unfreeze.training.trainer import PretrainTrainer


@dataclass(frozen=True, repr=False)
class PretrainResult(Displayed):
    """The result of a pretraining run; `loss` is the mean of the last record, None for 0 epochs.

    `figures`: metrics of the last feature evaluation that need no labels. `knn`: k-NN accuracy,
    correct, total and split of the last evaluation, and accuracy of the untrained network and of
    the teacher, if there is one; None without labels. `best`: epoch (counted from 1), metric, value
    and checkpoint of the best evaluation. `kept`: "last", "best" or "start", the weights in
    `model`. `continued`: those compared with the weights of `--init`; None without `--init`.
    `warnings`: see `RunWarning`.
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
    continued: dict[str, Any] | None
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
    console = LoggingConsole(console if processes.is_rank_zero else QuietConsole())
    folder_options: dict[str, Any] = {"resume": settings.resume, "overwrite": settings.overwrite}
    folder_options["inputs"] = inputs_of(settings)
    processes.on_rank_zero(lambda: check_run_folder(out, **folder_options))
    processes.on_rank_zero(lambda: locks.take_existing(out))
    given = settings
    # measured on rank 0 alone: all ranks must use the same values
    budgeted, why = processes.on_rank_zero(
        lambda: budget_pretrain(given, processes.world, _default_maker)
    )
    settings = with_budget_choice(given, budgeted)
    # rank 0 first: the others read its downloads from disk
    prepared = processes.rank_zero_first(
        lambda: prepare_pretraining(settings, console, processes.world, why)
    )
    dataset = prepared.checked(processes, console, deadline)
    # as late as possible: --overwrite deletes the old run
    processes.on_rank_zero(lambda: RunFolder.create(out, **folder_options, hold=locks.take))
    run = RunFolder(out, writes=processes.is_rank_zero)
    processes.on_rank_zero(lambda: write_initial_config(run, settings))
    console.into(run)
    chosen = processes.on_all_ranks(lambda: prepared.planned(dataset))
    threads = processes.on_rank_zero(lambda: checkpoint_threads(chosen.settings, run))
    device, room = prepared.compute.device, prepared.facts.room
    device_images = processes.on_all_ranks(lambda: dataset.held(chosen.settings, device, room))
    make = partial(prepared.trainer, dataset=dataset, processes=processes, held=device_images)
    flops = prepared.operations(chosen, processes.world)
    way = partial(choose_way, chosen, prepared.compute, run, processes, partial(make, chosen))
    tuning = processes.on_all_ranks(lambda: way(operations=flops, previous=threads))
    show_choice(tuning, console)
    # of rank 0: modification times differ between copies of the data on several machines
    fingerprint = processes.on_rank_zero(lambda: dataset.fingerprint)
    evaluates = bool(chosen.settings.watch_every and chosen.settings.epochs)
    here = evaluates and processes.is_rank_zero
    sample = processes.on_all_ranks(
        lambda: prepared.evaluation_sample(chosen.settings, dataset, console) if here else None
    )
    options = CallbackOptions(fingerprint, deadline, evaluates, sample, on_epoch)
    trainer = processes.on_all_ranks(lambda: make(chosen, tuning.way, run=run, options=options))
    inherit_head(trainer.task, prepared.start, prepared.reasons, console)
    resume_trainer(trainer, chosen.settings, fingerprint, console)
    reasons = {**prepared.reasons, **chosen.reasons, **tuning.reasons}
    _show_cost(prepared, chosen, trainer, tuning, console, given)
    with logging_to(settings.logger, run, as_dict(chosen.settings), trainer.step, console):
        processes.on_rank_zero(
            lambda: write_start(trainer, chosen, dataset, reasons, tuning.tables())
        )
        trainer.fit(console)
    write = partial(write_model, trainer, chosen.settings, dataset, prepared.start.loaded)
    processes.on_rank_zero(lambda: write(console, started, prepared.teacher))
    return _finish(trainer, chosen, dataset, started, console)


def _finish(
    trainer: PretrainTrainer,
    chosen: PretrainRecipe,
    dataset: UnlabelledDataset,
    started: float,
    console: Console,
) -> PretrainResult:
    """The result of a run that began at `started`, with its warnings; both are written."""
    on_rank_zero, run = trainer.processes.on_rank_zero, trainer.run

    def warn() -> list[RunWarning]:
        warnings = pretrain_warnings(trainer, chosen.settings, dataset)
        write_warnings(warnings, run)
        show_result_warnings(warnings, console, json=chosen.settings.json, run=run)
        return warnings

    warnings = on_rank_zero(warn)
    seconds = time.monotonic() - started
    result = _result(trainer, chosen.settings, len(dataset.train), seconds, warnings)

    def write() -> None:
        write_json(run.file(RESULT), asdict(result))  # marks the run as finished
        write_report_or_warn(str(run.path), console)
        settings = ThroughputSettings.of(facts_of(trainer, chosen, dataset))
        if message := bottleneck(run.metrics(), settings):
            console.say(message)

    on_rank_zero(write)
    return result


def plan_pretrain(settings: PretrainSettings, console: Console) -> PretrainPlan:
    """The plan of a run; writes no file."""
    given, world = settings, detect_launcher().world
    settings, why = budget_pretrain(given, world, _default_maker)
    prepared = prepare_pretraining(settings, console, world, why)
    chosen = prepared.plan
    flops = prepared.operations(chosen, world)

    way = default_way(chosen.settings, prepared.compute, 1, flops)
    set_threads(way.threads)
    make = _noise_maker(prepared, chosen, way)
    result = forecast(chosen, prepared.facts, make)
    show_forecast(chosen, result, console)
    _hint(result.time, given, world, console)
    if hint := method_hint(given, chosen.settings.image_size or 0):
        console.say(hint)
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
    plan: PretrainRecipe,
    trainer: PretrainTrainer,
    tuning: ComputeSettings,
    console: Console,
    given: PretrainSettings,
) -> None:
    """Show time and memory of the remaining steps; measured on rank 0, the others wait."""
    done = trainer.step

    def show() -> None:
        make = _noise_maker(prepared, plan, tuning.way)
        measured, source = tuning.measured, tuning.source
        costs = pretrain_cost(
            plan, prepared.facts, trainer, make, done=done, measured=measured, source=source
        )
        show_pretrain_cost(plan, costs, console)
        _hint(costs["time"], given, prepared.facts.processes, console)

    if done < plan.steps:
        trainer.processes.on_rank_zero(show)


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
    way = default_way(prepared.plan.settings, prepared.compute, 1, flops)
    set_threads(way.threads)
    return _noise_maker(prepared, prepared.plan, way)


def _noise_maker(prepared: PreparedPretraining, chosen: PretrainRecipe, way: StepConfig) -> Make:
    """Makes single-process trainers over random images."""

    def make(images: ImageDataset, positions: Any) -> PretrainTrainer:
        alone = replace(chosen, settings=replace(chosen.settings, sync_bn="none"))
        dataset = replace(prepared.found, images=images, train=positions)
        device_images = dataset.held(alone.settings, prepared.compute.device, prepared.facts.room)
        return prepared.trainer(
            alone, way, dataset=dataset, processes=Distributed(), held=device_images
        )

    return make


def _result(
    trainer: PretrainTrainer,
    s: PretrainSettings,
    images: int,
    seconds: float,
    warnings: list[RunWarning],
) -> PretrainResult:
    run, loss = trainer.run, trainer.state.loss
    rates = [r["images_per_second"] for r in run.metrics() if r.get("split") == "train"]
    return PretrainResult(
        run=str(run.path),
        arch=s.arch or "",
        epochs=trainer.state.epoch if trainer.ended else s.epochs or 0,
        steps=trainer.step,
        images=images,
        processes=trainer.processes.world,
        loss=loss if math.isfinite(loss) else None,
        images_per_second=float(np.median(rates)) if rates else None,
        seconds=round(seconds, 3),
        model=str(run.file("model")),
        kept=kept_weights(s, trainer.callback(FeatureEvaluator)),
        warnings=warnings,
        **evaluation_summary(trainer.callback(FeatureEvaluator), s, run),
    )
