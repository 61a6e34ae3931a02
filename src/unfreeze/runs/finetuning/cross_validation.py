"""Cross-validation and repeats: the same training with other validation splits and seeds."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.config.field import flag
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.layering import as_dict, build
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import DataError, Interrupted, UsageError, resume_command
from unfreeze.reports.intervals import IntervalEstimate, accuracy_over_seeds
from unfreeze.runs.finetuning.data import LabelledDataset, split_options
from unfreeze.runs.finetuning.setup import FinetuneJob
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
from unfreeze.transfer.checkpoints import FREE
from unfreeze.transfer.feature_cache.shared_rows import SharedCachePool
from unfreeze.transfer.train_val_split import TrainValSplit, cross_validation_folds, split_train_val

FOLDER, DONE = "folds", "held-out.json"


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


def repeated(
    context: RunContext, s: FinetuneSettings, main: OpenedRun, console: Console
) -> CrossValidationResult | None:
    """All runs of `--folds` and `--repeats`, each in its own folder; None if neither is given.

    Finished runs are read, not repeated.
    """
    if not s.folds and s.repeats == 1:
        return None
    s, dataset = _original_settings(s, main), main.ready
    pool = shared_cache_pool(dataset, s.seed)
    trials = list(_trials(s, dataset.portions))
    parts = []
    for number, (seed, fold, portions) in enumerate(trials, 1):
        name = f"{FOLDER}/seed-{seed}" + ("" if fold is None else f"-fold-{fold + 1}")
        folder = main.run.file(name)
        run_settings = replace(s, seed=seed, out=str(folder), resume="auto", overwrite=False)
        part = context.processes.leads(lambda run_settings=run_settings: _stored(run_settings))  # type: ignore[misc]
        if part is None:
            part = _run_one(
                context,
                run_settings,
                dataset.chosen(portions),
                pool,
                fold,
                ProgressOnlyConsole(console),
            )
        parts.append(part)
        console.say(
            f"{number}/{len(trials)} {folder.name}: accuracy on {part.n} held-out images "
            f"{part.correct_last / part.n:.3f} in the last epoch, {part.correct / part.n:.3f} in "
            "the selected one"
        )
    chose = "rates, too" if main.job.sweep or main.job.tried else "the epoch alone"
    if main.job.plan.settings.select == "last":
        chose = "nothing"
    positions = np.unique(np.concatenate([portions.val for *_, portions in trials]))
    result = combine(parts, chose, folds=s.folds, images=len(positions))
    context.processes.leads(lambda: write_json(main.run.file("folds.json"), asdict(result)))
    console.say(summary_line(result))
    return result


def with_repeats_in_plan(job: FinetuneJob, portions: TrainValSplit) -> FinetuneJob:
    """The job with the plan line of `--folds` and `--repeats`; DataError for too little data."""
    s = job.plan.settings
    if not s.folds and s.repeats == 1:
        return job
    count = len(list(_trials(s, portions)))
    reasons = {**job.plan.reasons, "folds": f"{count} runs before this one"}
    return replace(job, plan=replace(job.plan, reasons=reasons))


def number_of_runs(s: FinetuneSettings, portions: TrainValSplit) -> int:
    """The number of training runs: the run itself, and those of `--folds` and `--repeats`."""
    return 1 if not s.folds and s.repeats == 1 else 1 + len(list(_trials(s, portions)))


def combine(
    parts: list[FoldResult], chose: str, *, folds: int, images: int
) -> CrossValidationResult:
    """The combined result; `images`: number of distinct held-out images."""
    seeds = sorted({part.seed for part in parts})
    by_seed = [[part for part in parts if part.seed == seed] for seed in seeds]
    last_estimate = _estimate(
        by_seed, [[p.correct_last for p in seed_parts] for seed_parts in by_seed], images
    )
    best_estimate = _estimate(
        by_seed, [[p.correct for p in seed_parts] for seed_parts in by_seed], images
    )
    totals = [
        (sum(p.correct_last for p in seed_parts), sum(p.n for p in seed_parts))
        for seed_parts in by_seed
    ]
    return CrossValidationResult(
        folds=folds,
        seeds=seeds,
        n=images,
        accuracy=last_estimate.mean,
        interval=(last_estimate.low, last_estimate.high),
        deviation=last_estimate.deviation,
        accuracies=[right / n for right, n in totals],
        selected=best_estimate.mean,
        chose=chose,
        runs=parts,
    )


def _estimate(
    by_seed: list[list[FoldResult]], correct: list[list[int]], images: int
) -> IntervalEstimate:
    """Accuracy over seeds and images, with its interval."""
    right = [
        np.arange(sum(part.n for part in seed_parts)) < sum(counts)
        for seed_parts, counts in zip(by_seed, correct, strict=True)
    ]
    return accuracy_over_seeds(right, images)


def summary_line(result: CrossValidationResult) -> str:
    """One line with the result."""
    low, high = result.interval
    same_images = all(part.n == result.n for part in result.runs)  # as the data's own val is
    how = "the same validation images" if same_images else "different validation splits"
    how = f"{result.folds} folds" if result.folds else how
    seeds = f", {len(result.seeds)} seeds" if len(result.seeds) > 1 else ""
    text = (
        f"Cross-validation ({how}{seeds}): accuracy {result.accuracy:.3f} on {result.n:,} images "
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


def _trials(
    s: FinetuneSettings, portions: TrainValSplit
) -> Iterator[tuple[int, int | None, TrainValSplit]]:
    """(seed, fold, split) of each run, seed by seed."""
    for seed in range(s.seed, s.seed + s.repeats):
        selection = replace(split_options(s), seed=seed)
        if s.folds:
            splits = cross_validation_folds(portions, selection, s.folds)
            yield from ((seed, number, split) for number, split in enumerate(splits))
        else:
            positions = np.sort(np.concatenate([portions.train, portions.val]))
            # the same images as the run's own, split by another seed
            unlimited = replace(selection, labels_per_class=None, label_fraction=None, limit=None)
            split = split_train_val(portions.index, positions, unlimited, portions.alike)
            if not len(split.val):
                raise DataError(
                    "--repeats needs a validation set, but no images are held out.",
                    "Add images of each class, or omit --repeats.",
                )
            yield seed, None, split


def _run_one(
    context: RunContext,
    s: FinetuneSettings,
    dataset: LabelledDataset,
    pool: SharedCachePool,
    fold: int | None,
    console: Console,
) -> FoldResult:
    def ready_for(_: FinetuneSettings, preprocess: Preprocess) -> LabelledDataset:
        return dataset

    quiet = LoggingConsole(console)
    this_run = open_run(context, s, ready_for, quiet)
    trained = train_run(context, this_run, quiet, pool)
    scores = trained.scores
    if trained.outcome.stopped == "asked" or scores is None:
        error = interrupted_error(this_run.run, trained.job, trained.outcome)
        raise Interrupted(
            f"Stopped in {this_run.run.path.name}. {error.sentence}",
            resume_command("finetune", s.data, this_run.run.path.parent.parent),
        )
    last = [line for line in read_metrics(this_run.run.path) if line["split"] == "val"][-1]
    part = FoldResult(
        run=str(this_run.run.path),
        seed=s.seed,
        fold=fold,
        n=scores.n,
        correct=scores.correct,
        correct_last=int(last["correct"]),
    )
    record = {"part": asdict(part), "settings": _relevant_settings(s)}
    context.processes.leads(lambda: write_json(this_run.run.file(DONE), record))
    return part


def _original_settings(s: FinetuneSettings, main: OpenedRun) -> FinetuneSettings:
    """The settings as given, without derived values: each run makes its own plan."""
    changeable = {name: value for name, value in as_dict(s).items() if name in FREE}
    original = build(FinetuneSettings, {**as_dict(s), **main.job.asked, **changeable})
    return replace(original, out=s.out)


def _stored(s: FinetuneSettings) -> FoldResult | None:
    """The result of a finished run, None if there is none; UsageError for other settings."""
    path = Path(str(s.out)) / DONE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        part, settings = FoldResult(**record["part"]), dict(record["settings"])
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read: {error}.", "Remove its folder to train this run again."
        ) from error
    for name, value in _relevant_settings(s).items():
        if settings.get(name) != value:
            raise UsageError(
                f"{path.parent.name} was trained with {flag(name)} {settings.get(name)}, not "
                f"{value}.",
                "Use the same value, or a new --out.",
            )
    return part


def _relevant_settings(s: FinetuneSettings) -> dict[str, Any]:
    """The settings that determine the result, as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(as_dict(s)))
    return {name: value for name, value in values.items() if name not in FREE | {"repeats"}}
