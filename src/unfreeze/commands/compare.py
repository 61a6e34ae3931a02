"""`compare`: fine-tunes from several initial weights on the same images and compares accuracy."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, overload

from unfreeze.commands.compare_runs import (
    CompareRun,
    CompareRunResult,
    CompareStart,
    EvaluatedRun,
    all_starts,
    check_weights,
    evaluation_data,
    folder_name,
    run_trial,
    split_of_run,
)
from unfreeze.commands.report import report
from unfreeze.config.commands import CompareSettings
from unfreeze.config.field import flag, inputs_of
from unfreeze.config.layering import as_dict, load_settings, read_run_config, to_toml
from unfreeze.config.shared import Data, data_name
from unfreeze.errors import DataError, Interrupted, UsageError, resume_command
from unfreeze.evaluation.warnings import RunWarning, merge_over_runs
from unfreeze.reports.comparison import comparison_sentence, selected_on_validation, write_table
from unfreeze.reports.intervals import accuracy_over_seeds, paired_difference
from unfreeze.reports.results_runs import compare_display, compare_plan_display, plan_rows
from unfreeze.runs.python_call import python_call
from unfreeze.runs.run_warnings import show_result_warnings
from unfreeze.runtime.atomic import write_json, write_text
from unfreeze.runtime.console import Console
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.run_folder import RunFolder, check_run_folder
from unfreeze.runtime.run_lock import RunFolderLocks
from unfreeze.runtime.text_layout import TextTable

FREE = {"device", "workers", "store", "store_budget", "data_root", "data", "logger", "scan"}


@dataclass(frozen=True)
class WeightsResult:
    """One start over its seeds; `interval`: 95 %, over seeds and images."""

    weights: str
    name: str
    accuracy: float
    interval: tuple[float, float]
    deviation: float | None
    accuracies: list[float]
    balanced_accuracy: float
    image_size: int
    rates: list[float | None]


@dataclass(frozen=True)
class AccuracyDifference:
    """Accuracy of `start` minus that of `than`, paired by seed and image.

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
    starts: list[WeightsResult]
    differences: list[AccuracyDifference]
    failed: dict[str, int]
    verdict: str
    runs: list[CompareRunResult]
    seconds: float
    table: str
    report: str
    warnings: list[RunWarning]

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return compare_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per run."""
        return [asdict(run) for run in self.runs]


@dataclass(frozen=True, repr=False)
class ComparePlan(Displayed):
    """The result of `--dry-run`."""

    settings: dict[str, Any]
    reasons: dict[str, str]
    judged_by: str
    runs: list[str]

    shown_before: ClassVar[bool] = True

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return compare_plan_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per derived setting: its value and the reason."""
        return plan_rows(self)


@overload
def compare(
    data: Data,
    weights: list[str] | None = None,
    *,
    dry_run: Literal[False] = False,
    **settings: Any,
) -> Comparison: ...


@overload
def compare(
    data: Data, weights: list[str] | None = None, *, dry_run: Literal[True], **settings: Any
) -> ComparePlan: ...


@overload
def compare(
    data: Data, weights: list[str] | None = None, **settings: Any
) -> Comparison | ComparePlan: ...


@python_call(CompareSettings)
def compare(
    data: Data,
    weights: Sequence[str | PathLike[str]] | None = None,
    *,
    progress: bool | None = None,
    **settings: Any,
) -> Comparison | ComparePlan:
    """Fine-tune from each of `weights` with the same images and seeds, and compare accuracy.

    `weights`: two or more; None: none and imagenet, or those of the comparison that is resumed.
    Each run is evaluated on the test set once, at its end. With `resume`, finished runs of an
    interrupted comparison are not repeated.
    """
    began = time.monotonic()
    starts_from = {} if weights is None else {"weights": weights}
    given = load_settings(CompareSettings, {"data": data, **starts_from, **settings})
    return run_compare(given, python_console(progress), began=began)


@isolated()
def run_compare(
    settings: CompareSettings, console: Console, *, began: float | None = None
) -> Comparison | ComparePlan:
    """The same from a settings object."""
    with RunFolderLocks() as locks:
        began = time.monotonic() if began is None else began
        return _compared(settings, console, began, locks)


def _compared(
    s: CompareSettings, console: Console, began: float, locks: RunFolderLocks
) -> Comparison | ComparePlan:
    if not s.dry_run:
        _check_folder(s)
        locks.take_existing(str(s.out))
    if s.rates and s.lr is not None:
        raise UsageError("--lr and --rates exclude each other.", "Give only one of them.")
    candidates = all_starts(s)
    eval_data = evaluation_data(s, candidates[0].settings)
    _show_plan(candidates, eval_data, s, console)
    if s.dry_run:
        names = [t.folder.name for t in _trials(s, candidates, Path())]
        return ComparePlan(as_dict(s), candidates[0].plan.reasons, _describe(eval_data), names)
    folder_options: dict[str, Any] = {"resume": s.resume, "overwrite": s.overwrite}
    folder_options |= {"inputs": inputs_of(s), "hold": locks.take}
    run = RunFolder.create(str(s.out), **folder_options)
    trials = _trials(s, candidates, run.path)
    todo = {t.start.weights for t in trials if t.remembered() is None}
    for start in candidates:
        if start.weights in todo:
            check_weights(start, s, console)
    write_text(run.file("config.toml"), to_toml(as_dict(s), {"reasons": {}}))
    results = _run_all(trials, eval_data, s, console, began)
    result = _result(s, candidates, trials, results, time.monotonic() - began)
    write_json(run.file("compare.json"), asdict(result))
    write_table(run.file("compare.csv"), [asdict(outcome) for outcome in result.runs])
    report(str(run.path))
    show_result_warnings(result.warnings, console, json=s.json, run=run)
    return result


def _check_folder(s: CompareSettings) -> None:
    """UsageError if the output folder cannot be used, or holds a different comparison."""
    if not s.out:
        raise UsageError("compare needs an output folder.", "Add --out DIR, or --dry-run.")
    folder = check_run_folder(s.out, resume=s.resume, overwrite=s.overwrite, inputs=inputs_of(s))
    path = folder / "config.toml"
    if not s.resume or not path.exists():
        return
    old, new = read_run_config(path), as_dict(s)
    for name, new_value in new.items():
        old_value = old.get(name)
        if (
            new_value != old_value
            and name not in FREE
            and not _is_extended(name, old_value, new_value)
        ):
            raise UsageError(
                f"The comparison began with {flag(name)} {old_value}; it cannot resume with "
                f"{new_value}.",
                "Use the same value (--weights and --seeds may be extended), or another --out.",
            )


def _is_extended(name: str, was: Any, value: Any) -> bool:
    if name == "seeds":
        return bool(value > was)
    return name == "weights" and list(value)[: len(was)] == list(was)


def _trials(s: CompareSettings, candidates: list[CompareStart], folder: Path) -> list[CompareRun]:
    """All runs, seed by seed, so that an interrupted comparison has complete seeds."""
    return [
        CompareRun(start, seed, folder / folder_name(number, start, seed), s.rates or ())
        for seed in range(s.seed, s.seed + s.seeds)
        for number, start in enumerate(candidates, 1)
    ]


def _run_all(
    trials: list[CompareRun],
    eval_data: dict[str, Any],
    s: CompareSettings,
    console: Console,
    began: float,
) -> list[EvaluatedRun]:
    results = []
    for number, trial in enumerate(trials, 1):
        finished = trial.remembered() is not None
        try:
            results.append(run_trial(trial, eval_data, console, began=began))
        except Interrupted as error:
            step = resume_command("compare", s.data, Path(str(s.out)))
            raise Interrupted(f"Stopped in run {number} of {len(trials)}.", step) from error
        outcome = results[-1].outcome
        console.say(
            f"{number}/{len(trials)} {trial.start.name}, seed {trial.seed}: "
            f"accuracy {outcome.accuracy:.3f} on {outcome.split}"
            f"{' (already finished)' if finished else ''}"
        )
    return results


def _result(
    s: CompareSettings,
    candidates: list[CompareStart],
    trials: list[CompareRun],
    results: list[EvaluatedRun],
    seconds: float,
) -> Comparison:
    by_start = {
        start.weights: [f for f, t in zip(results, trials, strict=True) if t.start is start]
        for start in candidates
    }
    shared = _paired(by_start)
    names = {start.weights: start.name for start in candidates}
    first, seeds = results[0].outcome, list(range(s.seed, s.seed + s.seeds))
    same = all(
        len({split_of_run(Path(f.outcome.run)) for f in results if f.outcome.seed == seed}) == 1
        for seed in seeds
    )
    differences = _differences(by_start, shared)
    about = {"n": first.n, "split": first.split, "seeds": len(seeds), "same": same}
    about["frozen"] = s.freeze == "all" and s.unfreeze_at is None
    about["rates"] = _rates(s, results)
    about["failed"] = failed = _failed(by_start)
    runs = [asdict(f.outcome) for f in results]
    about["chose"] = selected_on_validation(runs, str(about["rates"]))
    out = Path(str(s.out))
    return Comparison(
        out=str(out),
        data=data_name(s.data),
        arch=first.arch,
        split=first.split,
        n=first.n,
        seeds=seeds,
        same_images=same,
        frozen=bool(about["frozen"]),
        rates=str(about["rates"]),
        starts=[_start_result(start, by_start[start.weights]) for start in candidates],
        differences=differences,
        failed=failed,
        verdict=comparison_sentence([asdict(d) for d in differences], names, about),
        runs=[f.outcome for f in results],
        seconds=seconds,
        table=str(out / "compare.csv"),
        report=str(out / "report.html"),
        warnings=merge_over_runs(
            {names[w]: [run.outcome.warnings for run in runs] for w, runs in by_start.items()}
        ),
    )


def _rates(s: CompareSettings, results: list[EvaluatedRun]) -> str:
    """How learning rates were selected; see `Comparison`."""
    if all(result.outcome.lr is None for result in results):
        return "none"
    if s.lr is not None or len(s.rates or ()) == 1:
        return "one"
    return "several" if s.rates or all(result.outcome.tried > 1 for result in results) else "own"


def _failed(by_start: dict[str, list[EvaluatedRun]]) -> dict[str, int]:
    """Start -> number of runs that learned nothing, if that is half of its runs or more."""
    failures = {w: sum(not run.outcome.learned for run in runs) for w, runs in by_start.items()}
    return {w: count for w, count in failures.items() if count and 2 * count >= len(by_start[w])}


def _paired(by_start: dict[str, list[EvaluatedRun]]) -> bool:
    """Whether all seeds have the same evaluation images; DataError if starts of a seed differ."""
    for results in zip(*by_start.values(), strict=True):
        if len({tuple(result.paths) for result in results}) > 1:
            raise DataError(
                f"The runs of seed {results[0].outcome.seed} were evaluated on different images.",
                "The data changed since the first run: start again in another --out.",
            )
    return len({tuple(result.paths) for result in next(iter(by_start.values()))}) == 1


def _image_count(runs: list[EvaluatedRun]) -> int:
    """Number of distinct evaluation images; the validation sets of seeds overlap."""
    return len({path for run in runs for path in run.paths})


def _start_result(start: CompareStart, runs: list[EvaluatedRun]) -> WeightsResult:
    estimate = accuracy_over_seeds([run.right for run in runs], _image_count(runs))
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
    )


def _differences(by_start: dict[str, list[EvaluatedRun]], shared: bool) -> list[AccuracyDifference]:
    """The difference of each pair of starts: to `none`, then to the earlier ones."""
    order = sorted(by_start, key=lambda weights: weights != "none")
    differences = []
    for than, start in combinations(order, 2):
        right, right_other = ([run.right for run in by_start[name]] for name in (start, than))
        estimate = paired_difference(
            right, right_other, _image_count(by_start[start]), shared=shared
        )
        verdict = "better" if estimate.low > 0 else "worse" if estimate.high < 0 else "open"
        differences.append(
            AccuracyDifference(start, than, estimate.mean, (estimate.low, estimate.high), verdict)
        )
    return differences


def _show_plan(
    candidates: list[CompareStart], eval_data: dict[str, Any], s: CompareSettings, console: Console
) -> None:
    first = candidates[0].plan
    console.say(
        f"{first.images:,} training images of {len(first.classes)} classes, "
        f"{s.seeds} seeds, {len(candidates) * s.seeds} runs; evaluated on {_describe(eval_data)}."
    )
    rates = f"best on val of {' '.join(f'{r:g}' for r in s.rates)}" if s.rates else ""
    rows = []
    for start in candidates:
        planned = start.plan.settings
        sizes = (str(planned[name]) for name in ("image_size", "epochs", "batch_size"))
        solved = planned["head_solver"] == "logistic"
        rate = "solved" if solved else rates or f"{planned['lr']:g}"
        rows.append((start.name, planned["arch"], planned["stem"], *sizes, rate))
    header = ("weights", "architecture", "stem", "image size", "epochs", "batch size", "lr")
    console.table(TextTable(header, rows))


def _describe(eval_data: dict[str, Any]) -> str:
    split = eval_data["split"]
    if split == "val":
        return "the validation set, which also selects the epoch (there is no test set)"
    return f"{split or 'the images'} of {data_name(eval_data['data'])}"
