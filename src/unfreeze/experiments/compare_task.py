"""`compare` for other tasks than classification: their metric, by a paired bootstrap of images."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfreeze.checkpoints.model_file import read_card
from unfreeze.config.commands import CompareSettings
from unfreeze.errors import DataError
from unfreeze.evaluation.warnings import NO_LEARNING, RunWarning
from unfreeze.experiments.compare import (
    Comparison,
    common_fields,
    cost_of_start,
    differences_of,
    same_in_all_seeds,
)
from unfreeze.experiments.compare_starts import CompareStart
from unfreeze.reports.comparison import comparison_verdict
from unfreeze.reports.intervals import IntervalEstimate, metric_over_seeds
from unfreeze.runs.task_evaluation import EvaluatedOutputs, resampled_metrics
from unfreeze.runtime.atomic import replacing
from unfreeze.tasks.registry import task_of_card
from unfreeze.tasks.supervised import SupervisedTask

EVALUATED = "evaluated.npz"  # what the metrics of each image are computed from, in a run's folder


@dataclass(frozen=True)
class TaskRunResult:
    """The result of one run, evaluated on `split`.

    `value`: of `metric`, which selects epochs, with its 95 % `interval`; `metrics`: all of them.
    The other fields: as in `CompareRunResult`.
    """

    weights: str
    seed: int
    run: str
    arch: str
    image_size: int | None
    lr: float | None
    tried: int
    epochs: int
    best_epoch: int | None
    split: str
    n: int
    metric: str
    value: float
    interval: tuple[float, float] | None
    metrics: dict[str, float]
    loss: float
    leaked: int | None
    test_uses: int | None
    seconds: float
    warnings: list[RunWarning]

    @property
    def learned(self) -> bool:
        """Whether no warning says that nothing was learned."""
        return not {warning.code for warning in self.warnings} & NO_LEARNING


@dataclass(frozen=True)
class EvaluatedTaskRun:
    """An outcome with the evaluated images; EVALUATED in the run's folder has their outputs."""

    outcome: TaskRunResult
    paths: list[str]

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "EvaluatedTaskRun":
        """From its JSON fields."""
        outcome = record["outcome"]
        warnings = [RunWarning(**warning) for warning in outcome["warnings"]]
        interval = outcome["interval"] and tuple(outcome["interval"])
        outcome = {**outcome, "interval": interval, "warnings": warnings}
        return cls(TaskRunResult(**outcome), record["paths"])

    def task(self) -> SupervisedTask:
        """The task, as the run's model has it."""
        card = read_card(self.outcome.run)
        task = task_of_card(card.task, card.outputs, card.task_state)
        if task is None:
            raise DataError(f"{self.outcome.run} holds a classifier.", "Remove its folder.")
        return task

    def arrays(self) -> tuple[Tensor, Tensor]:
        """(outputs [N, ...], targets [N, ...]) as the task's `metrics` takes them."""
        path = Path(self.outcome.run) / EVALUATED
        try:
            with np.load(path) as arrays:
                return torch.from_numpy(arrays["outputs"]), torch.from_numpy(arrays["targets"])
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{path} cannot be read: {error}.", "Remove its folder to train this run again."
            ) from error


@dataclass(frozen=True)
class TaskWeightsResult:
    """One start over its seeds: the mean of the metric; `interval`: 95 %, over seeds and images.

    `pretraining_seconds`, `seconds`: as in `WeightsResult`.
    """

    weights: str
    name: str
    value: float
    interval: tuple[float, float]
    deviation: float | None
    values: list[float]
    image_size: int | None
    rates: list[float | None]
    arch: str
    pretraining_seconds: float | None
    seconds: float


@dataclass(frozen=True, repr=False)
class TaskComparison(Comparison):
    """A comparison by `metric`; `starts` are `TaskWeightsResult`, `runs` `TaskRunResult`."""

    task: str
    metric: str
    lower_is_better: bool
    limits: tuple[float, float] | None


def write_evaluated(run: str, predictions: EvaluatedOutputs) -> None:
    """Keep what the metrics of each image are computed from in the run's folder."""
    outputs, targets = predictions.outputs.numpy(), predictions.targets.numpy()
    with replacing(Path(run) / EVALUATED) as path, path.open("wb") as file:
        np.savez_compressed(file, outputs=outputs, targets=targets)


def compare_task_results(
    s: CompareSettings,
    starts: list[CompareStart],
    results: Sequence[EvaluatedTaskRun],
    seconds: float,
) -> TaskComparison:
    """The comparison of all runs; DataError if runs of a seed were evaluated on other images."""
    by_start = {
        start.weights: [run for run in results if run.outcome.weights == start.weights]
        for start in starts
    }
    shared = same_in_all_seeds(by_start)
    task = results[0].task()
    resampled = {weights: _resampled(runs, shared) for weights, runs in by_start.items()}
    values = {weights: [run.outcome.value for run in runs] for weights, runs in by_start.items()}

    def estimate(start: str, than: str) -> IntervalEstimate:
        differences = [a - b for a, b in zip(values[start], values[than], strict=True)]
        d = metric_over_seeds(differences, resampled[start] - resampled[than])
        if task.limits is None:
            return d
        width = task.limits[1] - task.limits[0]
        return replace(d, low=max(-width, d.low), high=min(width, d.high))

    result = TaskComparison(
        **common_fields(s, starts, by_start, seconds),
        starts=[
            _start_result(start, by_start[start.weights], resampled[start.weights], task.limits)
            for start in starts
        ],
        differences=differences_of(list(by_start), estimate, lower_is_better=task.lower_is_better),
        task=task.name,
        metric=task.metric,
        lower_is_better=task.lower_is_better,
        limits=task.limits,
    )
    return replace(result, verdict=comparison_verdict(asdict(result)))


def _resampled(runs: Sequence[EvaluatedTaskRun], shared: bool) -> npt.NDArray[np.float64]:
    """The mean of the metric over seeds in each resample [R]; those of all starts are paired.

    `shared`: the seeds have the same images, which are drawn for all of them together.
    """
    of_seeds = []
    for number, run in enumerate(runs):
        task = run.task()
        resampled = resampled_metrics(task, *run.arrays(), seed=0 if shared else number)
        of_seeds.append(_defined(run.outcome, resampled[task.metric]))
    mean: npt.NDArray[np.float64] = np.mean(of_seeds, axis=0)
    return mean


def _defined(outcome: TaskRunResult, resampled: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The resamples, if the metric has a value in all of them: else no interval can be given."""
    if not (math.isfinite(outcome.value) and np.isfinite(resampled).all()):
        raise DataError(
            f"{outcome.metric} of {outcome.run} has no value on some resamples of its "
            f"{outcome.n:,} {outcome.split} images, so there is no interval to compare by.",
            "Evaluate on more images, or on images whose labels differ more.",
        )
    return resampled


def _start_result(
    start: CompareStart,
    runs: Sequence[EvaluatedTaskRun],
    resampled: npt.NDArray[np.float64],
    limits: tuple[float, float] | None,
) -> TaskWeightsResult:
    outcomes = [run.outcome for run in runs]
    values = [outcome.value for outcome in outcomes]
    estimate = metric_over_seeds(values, resampled)
    least, most = limits or (-math.inf, math.inf)
    return TaskWeightsResult(
        weights=start.weights,
        name=start.name,
        value=estimate.mean,
        interval=(max(least, estimate.low), min(most, estimate.high)),
        deviation=estimate.deviation,
        values=values,
        image_size=outcomes[0].image_size,
        rates=[outcome.lr for outcome in outcomes],
        **cost_of_start(start, outcomes),
    )
