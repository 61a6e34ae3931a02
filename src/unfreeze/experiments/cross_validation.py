"""Cross-validation and repeats: the same training with other validation splits and seeds."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.layering import as_dict, build
from unfreeze.errors import resume_command
from unfreeze.experiments.run_table import RunSpec, run_all
from unfreeze.reports.intervals import accuracy_over_seeds, mean_over_runs
from unfreeze.runs.finetuning.data import LabelledDataset, runs_of_splits
from unfreeze.runs.finetuning.resume import FREE
from unfreeze.runs.finetuning.train import (
    OpenedRun,
    RunContext,
    interrupted_error,
    open_run,
    train_run,
)
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import Console, LoggingConsole, ProgressOnlyConsole
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.tasks.supervised import SupervisedTask
from unfreeze.transfer.evaluate import ClassificationMetrics
from unfreeze.transfer.feature_cache.shared_rows import SharedCachePool
from unfreeze.transfer.train_val_split import TrainValSplit


@dataclass(frozen=True)
class FoldRun(RunSpec):
    """A run on one split; `fold` counts from 0, None without `--folds`."""

    fold: int | None
    portions: TrainValSplit


@dataclass(frozen=True)
class FoldResult:
    """One run and its score on `n` held-out images.

    `correct`: predictions of the epoch selected on these images that are right; `correct_last`:
    of the last epoch.
    """

    run: str
    seed: int
    fold: int | None
    n: int
    correct: int
    correct_last: int


@dataclass(frozen=True)
class CrossValidationResult:
    """Cross-validated accuracy on `n` distinct held-out images, with its 95 % interval.

    `accuracy`: of the last epochs, which were not selected on the held-out images; `selected`: of
    the epochs that were. `accuracies`: of each seed, over all its folds. `chose`: what the held-out
    images selected: "the epoch alone", "rates, too" (a sweep used them) or "nothing".
    """

    folds: int
    seeds: list[int]
    n: int
    accuracy: float
    interval: tuple[float, float]
    deviation: float | None
    accuracies: list[float]
    selected: float
    chose: str
    runs: list[FoldResult]


@dataclass(frozen=True)
class TaskFoldResult:
    """One run of another task and its metric on `n` held-out images.

    `value`: in the epoch selected on these images; `value_last`: in the last one. `images`: number
    of training images.
    """

    run: str
    seed: int
    fold: int | None
    n: int
    images: int
    value: float
    value_last: float


@dataclass(frozen=True)
class TaskCrossValidation:
    """Cross-validated `metric` of a task: the mean over runs, with its 95 % interval.

    `value`: of the last epochs; `values`: of each run; `selected`: of the epochs that the held-out
    images selected. The other fields: as in `CrossValidationResult`.
    """

    folds: int
    seeds: list[int]
    n: int
    metric: str
    value: float
    interval: tuple[float, float]
    deviation: float | None
    values: list[float]
    selected: float
    chose: str
    runs: list[TaskFoldResult]


def cross_validate(
    context: RunContext, s: FinetuneSettings, main: OpenedRun, console: Console
) -> CrossValidationResult | TaskCrossValidation | None:
    """Train all runs of `--folds` and `--repeats`, each in its own folder; None without them.

    Collective. Finished runs are read, not trained again.
    """
    if not s.folds and s.repeats == 1:
        return None
    specs, task = _fold_runs(s, main), main.job.task
    read: Any = FoldResult if task is None else TaskFoldResult
    pool = shared_cache_pool(main.ready, s.seed)
    parts = run_all(
        specs,
        lambda spec: _run_one(context, spec, main.ready, pool, ProgressOnlyConsole(console)),
        lambda record: read(**record),
        console,
        summary=lambda part: _fold_summary(part, task),
        stopped=lambda number, error: f"Stopped in {specs[number - 1].name}. {error.sentence}",
        resume=resume_command("finetune", s.data, main.run.path),
        processes=context.processes,
    )
    chose = "rates, too" if main.job.sweep or main.job.tried else "the epoch alone"
    if main.job.plan.settings.select == "last":
        chose = "nothing"
    images = len(np.unique(np.concatenate([spec.portions.val for spec in specs])))
    if task is None:
        result: CrossValidationResult | TaskCrossValidation = combine(
            parts, chose, folds=s.folds, images=images
        )
    else:
        result = combine_task(parts, chose, task, folds=s.folds, images=images)
    context.processes.on_rank_zero(lambda: write_json(main.run.file("folds.json"), asdict(result)))
    console.say(summary_line(result))
    return result


def combine(
    parts: list[FoldResult], chose: str, *, folds: int, images: int
) -> CrossValidationResult:
    """The combined result; `images`: number of distinct held-out images."""
    seeds = sorted({part.seed for part in parts})
    totals, last, best = (
        [sum(getattr(part, field) for part in parts if part.seed == seed) for seed in seeds]
        for field in ("n", "correct_last", "correct")
    )
    estimate, selected = (
        accuracy_over_seeds(
            [np.arange(n) < right for right, n in zip(correct, totals, strict=True)], images
        )
        for correct in (last, best)
    )
    return CrossValidationResult(
        folds=folds,
        seeds=seeds,
        n=images,
        accuracy=estimate.mean,
        interval=(estimate.low, estimate.high),
        deviation=estimate.deviation,
        accuracies=[right / n for right, n in zip(last, totals, strict=True)],
        selected=selected.mean,
        chose=chose,
        runs=parts,
    )


def combine_task(
    parts: list[TaskFoldResult], chose: str, task: SupervisedTask, *, folds: int, images: int
) -> TaskCrossValidation:
    """The combined result of another task; `images`: number of distinct held-out images."""
    last = [part.value_last for part in parts]
    held_out = sum(part.n for part in parts) / sum(part.images for part in parts)
    estimate, limits = mean_over_runs(last, held_out), task.limits or (-math.inf, math.inf)
    return TaskCrossValidation(
        folds=folds,
        seeds=sorted({part.seed for part in parts}),
        n=images,
        metric=task.metric,
        value=estimate.mean,
        interval=(max(limits[0], estimate.low), min(limits[1], estimate.high)),
        deviation=estimate.deviation,
        values=last,
        selected=sum(part.value for part in parts) / len(parts),
        chose=chose,
        runs=parts,
    )


def _fold_summary(part: FoldResult | TaskFoldResult, task: SupervisedTask | None) -> str:
    if isinstance(part, FoldResult):
        name, last, selected = "accuracy", part.correct_last / part.n, part.correct / part.n
    else:
        name, last, selected = task.metric if task else "", part.value_last, part.value
    return (
        f"{name} on {part.n} held-out images {last:.3f} in the last epoch, {selected:.3f} in the "
        "selected one"
    )


def summary_line(result: CrossValidationResult | TaskCrossValidation) -> str:
    """One line with the result."""
    low, high = result.interval
    name, value = "accuracy", 0.0
    if isinstance(result, TaskCrossValidation):
        name, value = result.metric, result.value
    else:
        value = result.accuracy
    same_images = all(part.n == result.n for part in result.runs)  # as the data's own val is
    how = "the same validation images" if same_images else "different validation splits"
    how = f"{result.folds} folds" if result.folds else how
    seeds = f", {len(result.seeds)} seeds" if len(result.seeds) > 1 else ""
    text = (
        f"Cross-validation ({how}{seeds}): {name} {value:.3f} on {result.n:,} images "
        f"[{low:.3f}, {high:.3f}]"
    )
    if result.chose == "nothing":
        return f"{text}."
    return (
        f"{text} in the last epoch; {result.selected:.3f} in the epochs selected on these images."
    )


def shared_cache_pool(dataset: LabelledDataset, seed: int) -> SharedCachePool:
    """All images of train and val, for a feature cache that the folds share."""
    index = dataset.portions.index
    positions = np.sort(np.concatenate([dataset.portions.train, dataset.portions.val]))
    both = dataset.chosen(TrainValSplit(index, positions, positions, ""))
    return SharedCachePool(both.train, both.val, seed, both.digest)


def _fold_runs(s: FinetuneSettings, main: OpenedRun) -> list[FoldRun]:
    """The runs of `--folds` and `--repeats`, with the settings as given: each makes its own plan.

    Derived values of the main run are left out of their settings.
    """
    free = {name: value for name, value in as_dict(s).items() if name in FREE}
    given = build(FinetuneSettings, {**as_dict(s), **main.job.asked, **free})
    specs = []
    for seed, fold, portions in runs_of_splits(given, main.ready.portions, main.job.task):
        name = f"seed-{seed}" + ("" if fold is None else f"-fold-{fold + 1}")
        folder = main.run.file(f"folds/{name}")
        settings = replace(given, seed=seed, out=str(folder), resume="auto")
        specs.append(FoldRun(name, folder, settings, fold, portions))
    return specs


def _run_one(
    context: RunContext,
    spec: FoldRun,
    dataset: LabelledDataset,
    pool: SharedCachePool,
    console: Console,
) -> FoldResult | TaskFoldResult:
    quiet = LoggingConsole(console)
    this_run = open_run(context, spec.settings, lambda *_: dataset.chosen(spec.portions), quiet)
    trained = train_run(context, this_run, quiet, pool)
    scores = trained.scores
    if trained.outcome.interrupted is not None or scores is None:
        raise interrupted_error(trained.job, trained.outcome)
    last = [line for line in read_metrics(spec.folder) if line["split"] == "val"][-1]
    name, task = str(spec.folder), trained.job.task
    about = (name, spec.settings.seed, spec.fold, scores.n)
    if isinstance(scores, ClassificationMetrics):
        return FoldResult(*about, correct=scores.correct, correct_last=int(last["correct"]))
    metric = task.metric if task else ""
    images, value = len(spec.portions.train), scores.values[metric]
    return TaskFoldResult(*about, images=images, value=value, value_last=float(last[metric]))
