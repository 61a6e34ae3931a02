"""Accuracy by initial weights: intervals, differences paired by seed and image, and a verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.checkpoints.model_file import model_folder, read_card
from unfreeze.config.commands import TFIDF, CompareSettings
from unfreeze.config.shared import data_name
from unfreeze.data.index.splits import read_split_csv
from unfreeze.errors import DataError
from unfreeze.evaluation.warnings import NO_LEARNING, RunWarning, merge_over_runs
from unfreeze.experiments.compare_starts import CompareStart
from unfreeze.reports.comparison import comparison_verdict
from unfreeze.reports.intervals import IntervalEstimate, accuracy_over_seeds, paired_difference
from unfreeze.reports.results_runs import compare_display
from unfreeze.runtime.display import Display, Displayed


@dataclass(frozen=True)
class CompareRunResult:
    """The result of one run, evaluated on `split`.

    `tried`: number of learning rates or sweep pairs that were compared on validation. `leaked`,
    `accuracy_unleaked`: as in `Evaluation`. `warnings`: of training and evaluation.
    """

    weights: str
    seed: int
    run: str
    arch: str
    image_size: int | None  # None: of texts
    lr: float | None  # None: the head was solved, not trained
    tried: int
    epochs: int
    best_epoch: int | None
    val_accuracy: float | None
    split: str
    n: int
    accuracy: float
    interval: tuple[float, float]
    balanced_accuracy: float
    loss: float
    leaked: int | None
    accuracy_unleaked: float | None
    test_uses: int | None
    seconds: float
    warnings: list[RunWarning]
    labels_per_class: int | None = None  # None: all

    @property
    def learned(self) -> bool:
        """Whether no warning says that nothing was learned."""
        return not {warning.code for warning in self.warnings} & NO_LEARNING


@dataclass(frozen=True)
class EvaluatedRun:
    """An outcome with the evaluated images: `paths`, and which predictions were right."""

    outcome: CompareRunResult
    paths: list[str]
    right: list[bool]

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "EvaluatedRun":
        """From its JSON fields."""
        outcome = record["outcome"]
        warnings = [RunWarning(**warning) for warning in outcome["warnings"]]
        outcome = {**outcome, "interval": tuple(outcome["interval"]), "warnings": warnings}
        return cls(CompareRunResult(**outcome), record["paths"], record["right"])


@dataclass(frozen=True)
class WeightsResult:
    """One start over its seeds; `interval`: 95 %, over seeds and images.

    `pretraining_seconds`: what its pretraining took, those of runs it continued included; 0 without
    pretraining, None if not known (weights of others). `seconds`: mean of a fine-tuning run.
    """

    weights: str
    name: str
    accuracy: float
    interval: tuple[float, float]
    deviation: float | None
    accuracies: list[float]
    balanced_accuracy: float
    image_size: int | None  # None: of texts
    rates: list[float | None]
    arch: str
    pretraining_seconds: float | None
    seconds: float


@dataclass(frozen=True)
class AccuracyDifference:
    """Accuracy of `start` (or a task's metric) minus that of `than`, paired by seed and image.

    `verdict`: "better", "worse", or "open" if the 95 % interval contains 0.
    """

    start: str
    than: str
    difference: float
    interval: tuple[float, float]
    verdict: str


@dataclass(frozen=True, repr=False)
class Comparison(Displayed):
    """The result of each start, the differences between them, and a verdict in one sentence.

    `same_images`: whether, for each seed, all starts had the same train and val (by split.csv).
    `rates`: learning rates: "one" for all starts, the best of "several" on validation for each
    start and seed, each start's "own" default, or "none" (heads were solved). `frozen`: only heads
    were trained, so `none` is a frozen random network. `failed`: number of runs that learned
    nothing, of starts where that is half of the runs or more. `warnings`: see `RunWarning`.
    `by_labels`: with several `--labels-per-class` the table by number of labels; the other fields
    are then those of the most labels, but `runs`, `warnings` and `verdict`, which are of all.
    """

    out: str
    data: str
    arch: str
    split: str
    n: int
    seeds: list[int]
    same_images: bool
    frozen: bool
    rates: str
    starts: list[Any]  # of `WeightsResult`, or what another task has
    differences: list[AccuracyDifference]
    failed: dict[str, int]
    verdict: str
    runs: list[Any]  # of `CompareRunResult`, or what another task has
    seconds: float
    table: str
    report: str
    warnings: list[RunWarning]
    by_labels: dict[str, Any] | None

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return compare_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per run."""
        return [asdict(run) for run in self.runs]


def compare_results(
    s: CompareSettings, starts: list[CompareStart], results: list[EvaluatedRun], seconds: float
) -> Comparison:
    """The comparison of all runs; DataError if runs of a seed were evaluated on other images."""
    by_start = {
        start.weights: [run for run in results if run.outcome.weights == start.weights]
        for start in starts
    }
    shared = same_in_all_seeds(by_start)

    def estimate(start: str, than: str) -> IntervalEstimate:
        (right, images), (other, _) = (_correct(by_start[name]) for name in (start, than))
        return paired_difference(right, other, images, shared=shared)

    result = Comparison(
        **common_fields(s, starts, by_start, seconds),
        starts=[_start_result(start, by_start[start.weights]) for start in starts],
        differences=differences_of(list(by_start), estimate),
    )
    return replace(result, verdict=comparison_verdict(asdict(result)))


def common_fields(
    s: CompareSettings,
    starts: list[CompareStart],
    by_start: Mapping[str, Sequence[Any]],
    seconds: float,
) -> dict[str, Any]:
    """The fields of a comparison that do not depend on the metric; `by_start`: its runs."""
    runs = [run.outcome for start in starts for run in by_start[start.weights]]
    runs.sort(key=lambda run: run.seed)
    out = Path(str(s.out))
    return {
        "out": str(out),
        "data": data_name(s.data),
        "arch": ", ".join(dict.fromkeys(r.arch for r in runs if r.arch != TFIDF)) or TFIDF,
        "split": runs[0].split,
        "n": runs[0].n,
        "seeds": list(range(s.seed, s.seed + s.seeds)),
        "same_images": len({_split_of(run) for run in runs}) == s.seeds,
        "frozen": s.freeze == "all" and s.unfreeze_at is None,
        "rates": _rates(s, runs),
        "failed": _failed(by_start),
        "verdict": "",
        "runs": runs,
        "seconds": seconds,
        "table": str(out / "compare.csv"),
        "report": str(out / "report.html"),
        "warnings": merge_over_runs(
            {
                start.name: [run.outcome.warnings for run in by_start[start.weights]]
                for start in starts
            }
        ),
        "by_labels": None,
    }


def _split_of(run: Any) -> tuple[int, frozenset[tuple[str, str]]]:
    """(seed, (path, split) of all images of train and val by split.csv)."""
    rows = read_split_csv(Path(run.run) / "split.csv")
    return run.seed, frozenset((row.path, row.split) for row in rows)


def _rates(s: CompareSettings, runs: Sequence[Any]) -> str:
    """How learning rates were selected; see `Comparison`."""
    if all(run.lr is None for run in runs):
        return "none"
    if s.lr is not None or len(s.rates or ()) == 1:
        return "one"
    return "several" if s.rates or all(run.tried > 1 for run in runs) else "own"


def _failed(by_start: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Start -> number of runs that learned nothing, if that is half of its runs or more."""
    failures = {w: sum(not run.outcome.learned for run in runs) for w, runs in by_start.items()}
    return {w: count for w, count in failures.items() if count and 2 * count >= len(by_start[w])}


def same_in_all_seeds(by_start: Mapping[str, Sequence[Any]]) -> bool:
    """Whether all seeds have the same evaluation images; DataError if starts of a seed differ."""
    for results in zip(*by_start.values(), strict=True):
        if len({tuple(result.paths) for result in results}) > 1:
            raise DataError(
                f"The runs of seed {results[0].outcome.seed} were evaluated on different images.",
                "The data changed since the first run: start again in another --out.",
            )
    return len({tuple(result.paths) for result in next(iter(by_start.values()))}) == 1


def _correct(runs: list[EvaluatedRun]) -> tuple[list[npt.NDArray[np.bool_]], int]:
    """(which predictions were right, by run; number of distinct images: those of seeds overlap)."""
    right = [np.array(run.right, np.bool_) for run in runs]
    return right, len({path for run in runs for path in run.paths})


def _start_result(start: CompareStart, runs: list[EvaluatedRun]) -> WeightsResult:
    estimate = accuracy_over_seeds(*_correct(runs))
    outcomes = [run.outcome for run in runs]
    return WeightsResult(
        weights=start.weights,
        name=start.name,
        accuracy=estimate.mean,
        interval=(estimate.low, estimate.high),
        deviation=estimate.deviation,
        accuracies=[outcome.accuracy for outcome in outcomes],
        balanced_accuracy=sum(outcome.balanced_accuracy for outcome in outcomes) / len(outcomes),
        image_size=outcomes[0].image_size,
        rates=[outcome.lr for outcome in outcomes],
        **cost_of_start(start, outcomes),
    )


def cost_of_start(start: CompareStart, outcomes: Sequence[Any]) -> dict[str, Any]:
    """The fields `arch`, `pretraining_seconds` and `seconds` of a start with these runs."""
    return {
        "arch": outcomes[0].arch,
        "pretraining_seconds": pretraining_seconds(start.weights),
        "seconds": sum(outcome.seconds for outcome in outcomes) / len(outcomes),
    }


def pretraining_seconds(weights: str) -> float | None:
    """Seconds that a run's pretraining took, with those of runs it continued; 0: none.

    None for weights that do not tell.
    """
    if weights in ("none", TFIDF):
        return 0.0
    if not Path(weights).exists() or model_folder(weights) is None:
        return None
    provenance = read_card(weights).provenance
    if provenance.get("verb") != "pretrain" or "seconds" not in provenance:
        return None
    return float(provenance["seconds"]) + float(provenance.get("seconds_before", 0.0))


def differences_of(
    weights: Sequence[str],
    estimate: Callable[[str, str], IntervalEstimate],
    *,
    lower_is_better: bool = False,
) -> list[AccuracyDifference]:
    """The difference of each pair of starts: to `none`, to `tfidf`, then to the earlier ones."""
    first = ("none", TFIDF)
    order = sorted(weights, key=lambda w: first.index(w) if w in first else len(first))
    differences = []
    for than, start in combinations(order, 2):
        d = estimate(start, than)
        verdict = "better" if d.low > 0 else "worse" if d.high < 0 else "open"
        if lower_is_better:
            verdict = {"better": "worse", "worse": "better"}.get(verdict, verdict)
        differences.append(AccuracyDifference(start, than, d.mean, (d.low, d.high), verdict))
    return differences
