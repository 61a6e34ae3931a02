"""`finetune`: transfer learning on labelled images."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, overload

import torch

from unfreeze.api.cost import cost, show_cost
from unfreeze.api.job import Job, begun, opened, threads_of
from unfreeze.api.keywords import python_call
from unfreeze.api.labelling import Checked, Labelled, checked, held, read_labels, unchecked
from unfreeze.api.repeating import Repeated, foretold, repeated, runs_of
from unfreeze.api.report import redrawn
from unfreeze.api.run_warnings import (
    data_warnings,
    end_warnings,
    finetune_warnings,
    show_warnings,
    write_warnings,
)
from unfreeze.api.single import Begun, Scene, Tuned, begin, stopped, telling, tuned, with_threads
from unfreeze.api.time_budget import finetune_hint, for_finetune, show_hint, with_choice
from unfreeze.checkpoints.modelfile import load_model
from unfreeze.data.loader import steps_of
from unfreeze.data.preprocess import Preprocess
from unfreeze.errors import UsageError
from unfreeze.evaluation.checks import cropped_warning
from unfreeze.evaluation.warnings import RunWarning
from unfreeze.reports.interval import wilson
from unfreeze.reports.results_runs import finetuned, plan_finetune, plan_rows, planned
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import Console, Logged, Quiet
from unfreeze.runtime.deadline import Deadline
from unfreeze.runtime.devices import pick_device
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.duration import HOUR
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.launcher import launched
from unfreeze.runtime.loggers import available
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.processes import join
from unfreeze.runtime.runfolder import RESULT, RunFolder, allowed, read_metrics
from unfreeze.runtime.runlock import RunLocks
from unfreeze.runtime.threads import Threads
from unfreeze.settings.build import as_dict, layered
from unfreeze.settings.finetune import FinetuneSettings
from unfreeze.settings.knob import inputs_of
from unfreeze.settings.shared import Data
from unfreeze.transfer.cost import Case
from unfreeze.transfer.freeze import fingerprint
from unfreeze.transfer.portions import Portions


@dataclass(frozen=True, repr=False)
class FinetuneResult(Displayed):
    """The result of a fine-tuning run; `val_accuracy`: of the selected epoch.

    `best_epoch` counts from 0; it and `val_accuracy` are None without a validation set.
    `val_images`: size of the validation set, which also selected the epoch; `val_interval`: 95 %
    (Wilson). `leaked`: number of validation images with a duplicate or near-duplicate in the
    training set; `accuracy_unleaked`: on the others, None if there are none. `frozen_unchanged`:
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
    repeated: Repeated | None = None

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return finetuned(self)

    def rows(self) -> list[dict[str, Any]]:
        """The records of the run's metrics.jsonl."""
        return read_metrics(self.run)


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
        return plan_finetune(self)

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
    """Train a classifier on the labelled images of `data`.

    Returns a `FinetunePlan` with `dry_run=True`. Raises the errors of `unfreeze.errors`.
    """
    began = time.monotonic()
    given = layered(FinetuneSettings, {"data": data, **settings})
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
    available(settings.logger)
    deadline = Deadline.of(settings.time_limit, began)
    if settings.dry_run:
        return _plan_run(settings, console)
    with RunLocks() as locks:
        return _trained(settings, console, deadline, locks, draw=draw)


def _trained(
    settings: FinetuneSettings, console: Console, deadline: Deadline, locks: RunLocks, *, draw: bool
) -> FinetuneResult:
    # check before anything is read or downloaded
    folder_options: dict[str, Any] = {"resume": settings.resume, "overwrite": settings.overwrite}
    allowed(str(settings.out), **folder_options, inputs=inputs_of(settings))
    processes = join(settings.device)
    processes.leads(lambda: locks.take_existing(str(settings.out)))
    console = Logged(console if processes.first else Quiet())
    device = pick_device(settings.device)
    # rank 0 first: the others read its downloads from disk
    data = processes.in_turn(lambda: read_labels(settings, console))
    context = Scene(data, device, deadline, processes, Threads.now(), locks)

    def ready_for(s: FinetuneSettings, preprocess: Preprocess) -> Checked:
        return checked(s, data, preprocess, console, processes.world)

    given = settings
    # measured on rank 0 alone: all ranks must use the same values
    budgeted, why = processes.leads(lambda: for_finetune(given, data, processes.world))
    settings = with_choice(given, budgeted)
    this_run = begin(context, settings, ready_for, console)
    this_run = replace(this_run, job=_with_reasons(this_run.job, why))
    _show_plan(this_run.job, len(this_run.ready.train), this_run.ready.portions.reason, console)
    processes.leads(lambda: _warn_of_data(this_run, console))
    if this_run.state is None:
        # measured on rank 0 alone: the others wait
        processes.leads(
            lambda: _show_cost(this_run.job, this_run.ready.portions, context, console, given)
        )
    repeats = repeated(context, settings, this_run, console)
    trained = tuned(context, this_run, console)
    ended = trained.outcome.stopped != "asked"
    result = (
        processes.leads(lambda: _result(this_run, trained, repeats, console, settings))
        if ended
        else None
    )
    if draw:
        processes.leads(lambda: redrawn(str(this_run.run.path), console))
    if result is None:
        raise stopped(this_run.run, trained.job, trained.outcome)
    return result


def _plan_run(settings: FinetuneSettings, console: Console) -> FinetunePlan:
    device, processes = pick_device(settings.device), launched().world
    data = read_labels(settings, console)
    given = settings
    settings, why = for_finetune(given, data, processes)
    torch.manual_seed(settings.seed)
    portions = unchecked(settings, data)
    counts = {"images": len(portions.train), "held_out": len(portions.val)}
    network = opened(settings, data)
    job = begun(settings, data, network, device, **counts, processes=processes)
    job = telling(job, held(settings, data, network.preprocess, processes))
    job = with_threads(job, *threads_of(job, Threads.now(), device, processes))
    job = _with_reasons(foretold(job, portions), why)
    return _show_and_plan(job, data, portions, console, processes, device, given)


def _result(
    this_run: Begun,
    trained: Tuned,
    repeats: Repeated | None,
    console: Console,
    given: FinetuneSettings,
) -> FinetuneResult:
    """The result, with warnings; writes result.json, which marks the run as finished."""
    run_warnings = finetune_warnings(this_run.run, this_run.ready, trained)
    write_warnings(run_warnings, this_run.run)
    end_warnings(run_warnings, console, json=given.json, run=this_run.run)
    run, job, outcome, scores = this_run.run, trained.job, trained.outcome, trained.scores
    trainable, frozen = job.counts
    accuracy, validation_images = outcome.val_accuracy, len(this_run.ready.val)
    result = FinetuneResult(
        run=str(run.path),
        arch=job.card.arch,
        classes=list(job.card.classes),
        epochs=outcome.epochs,
        best_epoch=outcome.best_epoch,
        val_accuracy=accuracy,
        parameters_trainable=trainable,
        parameters_frozen=frozen,
        frozen_unchanged=unchanged(run, job.hashes) if job.frozen else None,
        weights_matched=job.card.provenance["weights_matched"],
        images=len(this_run.ready.train),
        images_per_second=outcome.images / max(outcome.seconds, 1e-9),
        seconds=outcome.seconds,
        model=str(run.file("model")),
        val_images=validation_images,
        val_interval=None
        if accuracy is None
        else wilson(round(accuracy * validation_images), validation_images),
        leaked=int(this_run.ready.leaked.sum()) if validation_images else None,
        accuracy_unleaked=None if scores is None else scores.accuracy_of(~this_run.ready.leaked),
        warnings=run_warnings,
        repeated=repeats,
    )
    write_json(run.file(RESULT), asdict(result))
    return result


def unchanged(run: RunFolder, hashes: dict[str, str]) -> bool:
    """Whether every frozen entry of the written model equals its initial value, by hash."""
    tensors, _ = load_model(run.path)
    return fingerprint(tensors, hashes) == hashes


def _show_and_plan(
    job: Job,
    data: Labelled,
    portions: Portions,
    console: Console,
    processes: int,
    device: torch.device,
    given: FinetuneSettings,
) -> FinetunePlan:
    images, validation = len(portions.train), portions.reason
    _show_plan(job, images, validation, console)
    show_warnings(cropped_warning(data.cropped), console)
    s = job.plan.settings
    trainable, frozen = job.counts
    costs = cost(job, _case(job, portions), device, processes)
    show_cost(costs, console)
    _hint(costs["time"], given, data, processes, console)
    return FinetunePlan(
        **costs,
        settings=as_dict(s),
        reasons={**job.plan.reasons, "val": validation},
        classes=list(job.card.classes),
        counts=data.census.counts,
        images=images,
        steps=s.epochs * steps_of(images, job.plan.batch_size, drop_last=False, world=processes),
        parameters_trainable=trainable,
        parameters_frozen=frozen,
    )


def _warn_of_data(this_run: Begun, console: Console) -> None:
    """Show data warnings that need decoded images; others were shown when labels were read."""
    solved = this_run.job.plan.settings.head_solver == "logistic"
    warnings = data_warnings(this_run.ready, choose=not solved)
    show_warnings(
        [warning for warning in warnings if warning not in this_run.ready.doubts], console
    )


def _case(job: Job, portions: Portions) -> Case:
    counts = {"images": len(portions.train), "held_out": len(portions.val)}
    runs = runs_of(job.plan.settings, portions)
    return Case(job.network, job.schedule, job.head, **counts, runs=runs)


def _show_cost(
    job: Job, portions: Portions, context: Scene, console: Console, given: FinetuneSettings
) -> None:
    costs = cost(job, _case(job, portions), context.device, context.processes.world)
    show_cost(costs, console)
    _hint(costs["time"], given, context.found, context.processes.world, console)


def _hint(
    time_use: dict[str, Any],
    given: FinetuneSettings,
    data: Labelled,
    processes: int,
    console: Console,
) -> None:
    """If a run takes more than an hour, show what fits into one."""
    if given.time_budget is None and (time_use["seconds"] or 0) > HOUR:
        with torch.random.fork_rng():
            time_use["fits_one_hour"] = finetune_hint(given, data, processes)
        show_hint(time_use["fits_one_hour"], console)


def _with_reasons(job: Job, reasons_of_budget: dict[str, str]) -> Job:
    """The job with the reasons of the values that `--time-budget` selected."""
    reasons = {**job.plan.reasons, **reasons_of_budget}
    return replace(job, plan=replace(job.plan, reasons=reasons))


def _show_plan(job: Job, images: int, validation: str, console: Console) -> None:
    trainable, frozen = job.counts
    console.say(f"{images:,} training images of {len(job.card.classes)} classes.")
    console.say(f"Validation: {validation}.")
    console.table(planned(job.plan.reasons, asdict(job.plan.settings)))
    console.say(f"{trainable:,} trainable parameters, {frozen:,} frozen.")
