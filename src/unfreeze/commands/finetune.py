"""`finetune`: transfer learning on labelled images."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, overload

import torch

from unfreeze.commands.report import write_report_or_warn
from unfreeze.config.field import inputs_of
from unfreeze.config.finetune import CLASSIFICATION, TEXT_CLASSIFICATION, FinetuneSettings
from unfreeze.config.layering import as_dict, load_settings
from unfreeze.config.shared import Data
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.loading.loader import steps_per_epoch
from unfreeze.data.texts.preprocess import truncated_share
from unfreeze.errors import UsageError
from unfreeze.evaluation.checks import cropped_warning
from unfreeze.evaluation.warnings import RunWarning
from unfreeze.experiments.cross_validation import (
    CrossValidationResult,
    TaskCrossValidation,
    cross_validate,
)
from unfreeze.reports.intervals import wilson_interval
from unfreeze.reports.results_runs import (
    finetune_display,
    finetune_plan_display,
    plan_rows,
    settings_table,
)
from unfreeze.runs.finetuning.data import (
    LabelledDataset,
    LabelledListing,
    choose_pixel_cache,
    decode_and_split,
    number_of_runs,
    read_labels,
    split_undecoded,
)
from unfreeze.runs.finetuning.frozen_check import frozen_unchanged, frozen_unchanged_with_lora
from unfreeze.runs.finetuning.setup import FinetuneJob, choose_threads, new_job, set_up_model
from unfreeze.runs.finetuning.train import (
    OpenedRun,
    RunContext,
    TrainedRun,
    interrupted_error,
    open_run,
    train_run,
    with_cache_reason,
    with_threads,
)
from unfreeze.runs.python_call import python_call
from unfreeze.runs.run_warnings import (
    data_warnings,
    finetune_warnings,
    show_result_warnings,
    show_warnings,
    write_warnings,
)
from unfreeze.runs.time_budget import budget_finetune, finetune_hint, show_hint, with_budget_choice
from unfreeze.runs.training_cost import finetune_cost, show_cost
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import Console, LoggingConsole, QuietConsole
from unfreeze.runtime.device import pick_device
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.distributed import init_distributed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.launcher import detect_launcher
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.run_folder import RESULT, RunFolder, check_run_folder, read_metrics
from unfreeze.runtime.run_lock import RunFolderLocks
from unfreeze.runtime.threads import ThreadCount
from unfreeze.runtime.time_limit import HOUR, TimeLimit
from unfreeze.runtime.trackers import check_loggers
from unfreeze.transfer.cost import CostInput
from unfreeze.transfer.evaluate import TaskMetrics
from unfreeze.transfer.loss import TrainingResult
from unfreeze.transfer.train_val_split import TrainValSplit


@dataclass(frozen=True, repr=False)
class FinetuneResult(Displayed):
    """The result of a fine-tuning run; `val_accuracy`: of the selected epoch.

    `best_epoch` counts from 0; it and `val_accuracy` are None without a validation set.
    `val_images`: size of the validation set, which also selected the epoch; `val_interval`: 95 %
    (Wilson). `leaked`: number of validation images with a duplicate or near-duplicate in the
    training set; `val_metrics`: the validation line of metrics.jsonl;
    `accuracy_unleaked`: on the others, None if there are none. `frozen_unchanged`:
    whether the frozen entries of the written model equal the initial ones by hash; None if nothing
    is frozen. `repeated`: result of `--folds` and `--repeats`. `warnings`: see `RunWarning`.
    """

    run: str
    arch: str
    classes: list[str]
    epochs: int
    best_epoch: int | None
    val_accuracy: float | None
    parameters_trainable: int
    parameters_frozen: int
    frozen_unchanged: bool | None
    weights_matched: float | None
    images: int
    images_per_second: float
    seconds: float
    model: str
    val_images: int
    val_interval: tuple[float, float] | None
    leaked: int | None
    accuracy_unleaked: float | None
    warnings: list[RunWarning]
    repeated: CrossValidationResult | TaskCrossValidation | None = None
    task: str = CLASSIFICATION
    val_metrics: dict[str, float] = field(default_factory=dict)

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return finetune_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """The records of the run's metrics.jsonl."""
        return read_metrics(self.run)

    def more_fields(self) -> Mapping[str, Any]:
        """`val_NAME` of the metrics of another task, such as `val_miou`."""
        plain = self.task in (CLASSIFICATION, TEXT_CLASSIFICATION)
        other = () if plain else self.val_metrics
        return {f"val_{name}": self.val_metrics[name] for name in other if name != "total"}


@dataclass(frozen=True, repr=False)
class TextFinetuneResult(FinetuneResult):
    """The result of a run on texts; `truncated`: share of the training texts that were cut."""

    truncated: float = 0.0


@dataclass(frozen=True, repr=False)
class FinetunePlan(Displayed):
    """The result of `--dry-run`: settings, reasons of the derived ones, sizes and cost.

    `counts`: images by class and split (`all` without splits). `time`: seconds of the run;
    `memory`: bytes on the device of one process; each with its `basis`, None if unknown.
    """

    settings: dict[str, Any]
    reasons: dict[str, str]
    classes: list[str]
    counts: dict[str, dict[str, int]]
    images: int
    steps: int
    parameters_trainable: int
    parameters_frozen: int
    time: dict[str, Any]
    memory: dict[str, Any]

    shown_before: ClassVar[bool] = True

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return finetune_plan_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per derived setting: its value and the reason."""
        return plan_rows(self)


@overload
def finetune(data: Data, *, dry_run: Literal[False] = False, **settings: Any) -> FinetuneResult: ...


@overload
def finetune(data: Data, *, dry_run: Literal[True], **settings: Any) -> FinetunePlan: ...


@overload
def finetune(data: Data, **settings: Any) -> FinetuneResult | FinetunePlan: ...


@python_call(FinetuneSettings)
def finetune(
    data: Data, *, progress: bool | None = None, **settings: Any
) -> FinetuneResult | FinetunePlan:
    """Train a classifier, or a model of another task, on the labelled images of `data`.

    Returns a `FinetunePlan` with `dry_run=True`. Raises the errors of `unfreeze.errors`.
    """
    began = time.monotonic()
    given = load_settings(FinetuneSettings, {"data": data, **settings})
    return run_finetune(given, python_console(progress), began=began)


@isolated()
def run_finetune(
    settings: FinetuneSettings, console: Console, *, draw: bool = True, began: float | None = None
) -> FinetuneResult | FinetunePlan:
    """The same from a settings object; without `draw` no report is written.

    `began`: time.monotonic() from which `time_limit` counts; None: the start of the process.
    """
    if not settings.dry_run and not settings.out:
        raise UsageError("finetune needs a run folder.", "Add --out RUN, or --dry-run.")
    check_loggers(settings.logger)
    deadline = TimeLimit.of(settings.time_limit, began)
    if settings.dry_run:
        return _plan_run(settings, console)
    with RunFolderLocks() as locks:
        return _trained(settings, console, deadline, locks, draw=draw)


def _trained(
    settings: FinetuneSettings,
    console: Console,
    deadline: TimeLimit,
    locks: RunFolderLocks,
    *,
    draw: bool,
) -> FinetuneResult:
    # check before anything is read or downloaded
    folder_options: dict[str, Any] = {"resume": settings.resume, "overwrite": settings.overwrite}
    check_run_folder(str(settings.out), **folder_options, inputs=inputs_of(settings))
    processes = init_distributed(settings.device)
    processes.on_rank_zero(lambda: locks.take_existing(str(settings.out)))
    console = LoggingConsole(console if processes.is_rank_zero else QuietConsole())
    device = pick_device(settings.device)
    # rank 0 first: the others read its downloads from disk
    data = processes.rank_zero_first(lambda: read_labels(settings, console))
    context = RunContext(data, device, deadline, processes, ThreadCount.now(), locks)

    def ready_for(s: FinetuneSettings, preprocess: Preprocess) -> LabelledDataset:
        return decode_and_split(s, data, preprocess, console, processes.world)

    given = settings
    # measured on rank 0 alone: all ranks must use the same values
    budgeted, why = processes.on_rank_zero(lambda: budget_finetune(given, data, processes.world))
    settings = with_budget_choice(given, budgeted)
    this_run = open_run(context, settings, ready_for, console)
    this_run = replace(this_run, job=_with_reasons(this_run.job, why))
    _show_plan(this_run.job, len(this_run.ready.train), this_run.ready.portions.reason, console)
    processes.on_rank_zero(lambda: _warn_of_data(this_run, console))
    if this_run.state is None:
        # measured on rank 0 alone: the others wait
        processes.on_rank_zero(
            lambda: _show_cost(this_run.job, this_run.ready.portions, context, console, given)
        )
    repeats = cross_validate(context, settings, this_run, console)
    trained = train_run(context, this_run, console, known=True)
    ended = trained.outcome.interrupted is None
    result = (
        processes.on_rank_zero(lambda: _result(this_run, trained, repeats, console, settings))
        if ended
        else None
    )
    if draw:
        processes.on_rank_zero(lambda: write_report_or_warn(str(this_run.run.path), console))
    if result is None:
        raise interrupted_error(trained.job, trained.outcome)
    return result


def _plan_run(settings: FinetuneSettings, console: Console) -> FinetunePlan:
    device, processes = pick_device(settings.device), detect_launcher().world
    data = read_labels(settings, console)
    given = settings
    settings, why = budget_finetune(given, data, processes)
    torch.manual_seed(settings.seed)
    portions = split_undecoded(settings, data)
    counts = {"images": len(portions.train), "held_out": len(portions.val)}
    network = set_up_model(settings, data)
    job = new_job(settings, data, network, device, **counts, processes=processes)
    job = with_cache_reason(job, choose_pixel_cache(settings, data, network.preprocess, processes))
    job = with_threads(job, *choose_threads(job, ThreadCount.now(), device, processes))
    if repeats := number_of_runs(job.plan.settings, portions, job.task) - 1:
        why = {"folds": f"{repeats} runs before this one", **why}
    job = _with_reasons(job, why)
    return _show_and_plan(job, data, portions, console, processes, device, given)


def _result(
    this_run: OpenedRun,
    trained: TrainedRun,
    repeats: CrossValidationResult | TaskCrossValidation | None,
    console: Console,
    given: FinetuneSettings,
) -> FinetuneResult:
    """The result, with warnings; writes result.json, which marks the run as finished."""
    run_warnings = finetune_warnings(this_run.run, this_run.ready, trained)
    write_warnings(run_warnings, this_run.run)
    show_result_warnings(run_warnings, console, json=given.json, run=this_run.run)
    run, job, outcome = this_run.run, trained.job, trained.outcome
    scores = None if isinstance(trained.scores, TaskMetrics) else trained.scores
    trainable, frozen = job.counts
    accuracy, validation_images = outcome.val_accuracy, len(this_run.ready.val)
    result = FinetuneResult(
        run=str(run.path),
        arch=job.card.arch,
        classes=list(job.card.classes),
        epochs=outcome.epochs,
        best_epoch=outcome.best_epoch,
        val_accuracy=accuracy,
        task=job.card.task,
        val_metrics=outcome.val_metrics,
        parameters_trainable=trainable,
        parameters_frozen=frozen,
        frozen_unchanged=_unchanged(run, job, outcome) if job.frozen else None,
        weights_matched=job.card.provenance["weights_matched"],
        images=len(this_run.ready.train),
        images_per_second=outcome.images / max(outcome.seconds, 1e-9),
        seconds=outcome.seconds,
        model=str(run.file("model")),
        val_images=validation_images,
        val_interval=None
        if accuracy is None
        else wilson_interval(round(accuracy * validation_images), validation_images),
        leaked=int(this_run.ready.leaked.sum()) if validation_images else None,
        accuracy_unleaked=None if scores is None else scores.accuracy_of(~this_run.ready.leaked),
        warnings=run_warnings,
        repeated=repeats,
    )
    if (share := truncated_share(this_run.ready.train.index, job.plan.preprocess)) is not None:
        result = TextFinetuneResult(**vars(result), truncated=share)
    write_json(run.file(RESULT), asdict(result))
    return result


def _unchanged(run: RunFolder, job: FinetuneJob, outcome: TrainingResult) -> bool:
    rank, best = job.plan.settings.lora, outcome.best_epoch is not None
    if rank:
        return frozen_unchanged_with_lora(run, job.hashes, rank, best=best)
    return frozen_unchanged(run, job.hashes)


def _show_and_plan(
    job: FinetuneJob,
    data: LabelledListing,
    portions: TrainValSplit,
    console: Console,
    processes: int,
    device: torch.device,
    given: FinetuneSettings,
) -> FinetunePlan:
    images, validation = len(portions.train), portions.reason
    _show_plan(job, images, validation, console)
    if job.plan.preprocess.fit == "crop":
        show_warnings(cropped_warning(data.cropped), console)
    s = job.plan.settings
    trainable, frozen = job.counts
    costs = finetune_cost(job, _case(job, portions), device, processes)
    show_cost(costs, console)
    _hint(costs["time"], given, data, processes, console)
    return FinetunePlan(
        **costs,
        settings=as_dict(s),
        reasons={**job.plan.reasons, "val": validation},
        classes=list(job.card.classes),
        counts=data.census.counts if data.task is None else {},
        images=images,
        steps=(s.epochs or 0)
        * steps_per_epoch(images, job.plan.batch_size, drop_last=False, world=processes),
        parameters_trainable=trainable,
        parameters_frozen=frozen,
    )


def _warn_of_data(this_run: OpenedRun, console: Console) -> None:
    """Show data warnings that need decoded images; others were shown when labels were read."""
    solved = this_run.job.plan.settings.head_solver == "logistic"
    warnings = data_warnings(this_run.ready, choose=not solved)
    show_warnings(
        [warning for warning in warnings if warning not in this_run.ready.doubts], console
    )


def _case(job: FinetuneJob, portions: TrainValSplit) -> CostInput:
    counts = {"images": len(portions.train), "held_out": len(portions.val)}
    runs = number_of_runs(job.plan.settings, portions, job.task)
    return CostInput(job.network, job.schedule, job.head, **counts, runs=runs)


def _show_cost(
    job: FinetuneJob,
    portions: TrainValSplit,
    context: RunContext,
    console: Console,
    given: FinetuneSettings,
) -> None:
    costs = finetune_cost(job, _case(job, portions), context.device, context.processes.world)
    show_cost(costs, console)
    _hint(costs["time"], given, context.found, context.processes.world, console)


def _hint(
    time_use: dict[str, Any],
    given: FinetuneSettings,
    data: LabelledListing,
    processes: int,
    console: Console,
) -> None:
    """If a run takes more than an hour, show what fits into one."""
    if given.time_budget is None and (time_use["seconds"] or 0) > HOUR:
        with torch.random.fork_rng():
            time_use["fits_one_hour"] = finetune_hint(given, data, processes)
        show_hint(time_use["fits_one_hour"], console)


def _with_reasons(job: FinetuneJob, reasons_of_budget: dict[str, str]) -> FinetuneJob:
    """The job with the reasons of the values that `--time-budget` selected."""
    reasons = {**job.plan.reasons, **reasons_of_budget}
    return replace(job, plan=replace(job.plan, reasons=reasons))


def _show_plan(job: FinetuneJob, images: int, validation: str, console: Console) -> None:
    trainable, frozen = job.counts
    classes = f" of {len(job.card.classes)} classes" if job.task is None else ""
    samples = "texts" if job.plan.preprocess.fit == "text" else "images"
    console.say(f"{images:,} training {samples}{classes}.")
    console.say(f"Validation: {validation}.")
    console.table(settings_table(job.plan.reasons, asdict(job.plan.settings)))
    console.say(f"{trainable:,} trainable parameters, {frozen:,} frozen.")
