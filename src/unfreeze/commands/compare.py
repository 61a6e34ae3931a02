"""`compare`: fine-tunes from several initial weights on the same images and compares accuracy."""

import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, cast

from unfreeze.commands.evaluate import Evaluation, evaluate_with_predictions
from unfreeze.commands.finetune import FinetunePlan, FinetuneResult, run_finetune
from unfreeze.commands.report import report
from unfreeze.config.commands import TFIDF, CompareSettings, EvaluateSettings
from unfreeze.config.field import flag, inputs_of
from unfreeze.config.finetune import SEGMENTATION, FinetuneSettings
from unfreeze.config.layering import as_dict, load_settings, read_run_config, to_toml
from unfreeze.config.shared import Data, data_name
from unfreeze.errors import DataError, UsageError, resume_command
from unfreeze.evaluation.warnings import merge_latest
from unfreeze.experiments.compare import (
    CompareRunResult,
    Comparison,
    EvaluatedRun,
    compare_results,
)
from unfreeze.experiments.compare_labels import compare_by_labels
from unfreeze.experiments.compare_starts import (
    CompareRun,
    CompareStart,
    all_starts,
    check_weights,
    compare_runs,
    evaluation_data,
    label_counts,
)
from unfreeze.experiments.compare_task import (
    EvaluatedTaskRun,
    TaskRunResult,
    compare_task_results,
    write_evaluated,
)
from unfreeze.experiments.run_table import changed_settings, run_all, stored_result
from unfreeze.experiments.tfidf_run import train_tfidf
from unfreeze.models.text import is_text_arch
from unfreeze.reports.comparison import write_table
from unfreeze.reports.results_runs import compare_plan_display, plan_rows
from unfreeze.runs.finetuning.data import read_labels
from unfreeze.runs.finetuning.task_settings import open_training_source
from unfreeze.runs.python_call import python_call
from unfreeze.runs.run_warnings import show_result_warnings
from unfreeze.runs.task_evaluation import TaskEvaluation, evaluate_task_with_predictions
from unfreeze.runtime.atomic import write_json, write_text
from unfreeze.runtime.console import Console, ProgressOnlyConsole, QuietConsole, pluralised
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.run_folder import RunFolder, check_run_folder
from unfreeze.runtime.run_lock import RunFolderLocks
from unfreeze.runtime.text_layout import TextTable
from unfreeze.tasks.registry import supervised_task, task_of_data

FREE = {"device", "workers", "store", "store_budget", "data_root", "data", "logger", "scan"}


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
    s: CompareSettings, console: Console, *, began: float | None = None
) -> Comparison | ComparePlan:
    """The same from a settings object."""
    began = time.monotonic() if began is None else began
    with RunFolderLocks() as locks:
        if not s.dry_run:
            _check_folder(s)
            locks.take_existing(str(s.out))
        if s.rates and s.lr is not None:
            raise UsageError("--lr and --rates exclude each other.", "Give only one of them.")
        source = open_training_source(s, s.task)
        starts = all_starts(s, plan_run, dense=task_of_data(s.task, source) == SEGMENTATION)
        listing = read_labels(starts[0].settings, QuietConsole())
        eval_data = evaluation_data(s, listing)
        _show_plan(starts, eval_data, s, console)
        if s.dry_run:
            names = [spec.run_name for spec in compare_runs(s, starts, Path())]
            return ComparePlan(as_dict(s), starts[0].plan.reasons, _describe(eval_data), names)
        folder_options: dict[str, Any] = {"resume": s.resume, "overwrite": s.overwrite}
        folder_options |= {"inputs": inputs_of(s), "hold": locks.take}
        run = RunFolder.create(str(s.out), **folder_options)
        specs = compare_runs(s, starts, run.path)
        of_task = listing.task is not None
        read: Any = EvaluatedTaskRun.from_record if of_task else EvaluatedRun.from_record
        evaluate: Any = train_and_evaluate_task if of_task else train_and_evaluate
        todo = {spec.start.weights for spec in specs if stored_result(spec, read) is None}
        for start in starts:
            if start.weights in todo:
                check_weights(start, s, console)
        write_text(run.file("config.toml"), to_toml(as_dict(s), {"reasons": {}}))
        results = run_all(
            specs,
            lambda spec: evaluate(spec, eval_data, ProgressOnlyConsole(console), began=began),
            read,
            console,
            summary=lambda one: _summary(one.outcome),
            stopped=lambda number, _: f"Stopped in run {number} of {len(specs)}.",
            resume=resume_command("compare", s.data, run.path),
            finished=" (already finished)",
        )
        summarize: Any = compare_task_results if of_task else compare_results
        result = compare_by_labels(summarize, s, starts, specs, results, time.monotonic() - began)
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
    for name, old, new in changed_settings(read_run_config(path), as_dict(s), FREE):
        extended = (name == "seeds" and new > old) or (
            name == "weights" and list(new)[: len(old)] == list(old)
        )
        # the folders of a single number of labels do not name it
        if name == "labels_per_class" and min(len(old or ()), len(new or ())) > 1:
            extended = set(old) <= set(new)
        if not extended:
            raise UsageError(
                f"The comparison began with {flag(name)} {old}; it cannot resume with {new}.",
                "Use the same value (--weights and --seeds may be extended), or another --out.",
            )


def plan_run(settings: FinetuneSettings) -> FinetunePlan:
    """The plan of a run with these settings."""
    return cast(FinetunePlan, run_finetune(replace(settings, dry_run=True), QuietConsole()))


def train_and_evaluate(
    spec: CompareRun, eval_data: dict[str, Any], console: Console, *, began: float
) -> EvaluatedRun:
    """Train a run with each of its learning rates and evaluate the best on validation.

    `eval_data`: data and split for `evaluate`.
    """
    if spec.start.weights == TFIDF:
        return train_tfidf(spec, eval_data)
    finetuned = _train(spec, console, began)
    evaluation, predictions = evaluate_with_predictions(
        _eval_settings(spec, finetuned, eval_data), console
    )
    values = _values(spec, finetuned, evaluation)
    outcome = CompareRunResult(**{f.name: values[f.name] for f in fields(CompareRunResult)})
    report(finetuned.run)
    each = predictions.each
    return EvaluatedRun(outcome, [one.path for one in each], [one.right for one in each])


def train_and_evaluate_task(
    spec: CompareRun, eval_data: dict[str, Any], console: Console, *, began: float
) -> EvaluatedTaskRun:
    """The same for another task; `eval_data`: as above."""
    finetuned = _train(spec, console, began)
    evaluation, predictions = evaluate_task_with_predictions(
        _eval_settings(spec, finetuned, eval_data), console
    )
    write_evaluated(finetuned.run, predictions)
    values, task = _values(spec, finetuned, evaluation), supervised_task(finetuned.task)
    name = task.metric if task else ""
    values |= {"metric": name, "value": evaluation.metrics[name]}
    values["interval"] = evaluation.intervals[name]
    outcome = TaskRunResult(**{f.name: values[f.name] for f in fields(TaskRunResult)})
    report(finetuned.run)
    return EvaluatedTaskRun(outcome, predictions.paths)


def _train(spec: CompareRun, console: Console, began: float) -> FinetuneResult:
    """Train with each of the learning rates; the best run on validation."""
    runs = []
    for variant in spec.variants:
        resume = "auto" if Path(str(variant.out)).exists() else None
        settings = replace(variant, resume=resume)
        runs.append(run_finetune(settings, console, began=began, draw=False))
    return best_on_validation(cast(list[FinetuneResult], runs))


def _eval_settings(
    spec: CompareRun, finetuned: FinetuneResult, eval_data: dict[str, Any]
) -> EvaluateSettings:
    serving = {name: getattr(spec.settings, name) for name in ("device", "data_root", "workers")}
    return EvaluateSettings(run=finetuned.run, weights_of="best", **eval_data, **serving)


def _values(
    spec: CompareRun, finetuned: FinetuneResult, evaluation: Evaluation | TaskEvaluation
) -> dict[str, Any]:
    """What a run's result is made of, by name."""
    config = (Path(finetuned.run) / "config.toml").read_text(encoding="utf-8")
    resolved = tomllib.loads(config)
    # a head may sweep by itself
    tried = len(spec.variants) * max(1, len(resolved["facts"].get("tried", ())))
    return {
        **vars(finetuned),
        **vars(evaluation),
        "run": finetuned.run,
        "weights": spec.start.weights,
        "seed": spec.settings.seed,
        "lr": resolved.get("lr"),
        "image_size": resolved.get("image_size"),
        "tried": tried,
        "labels_per_class": spec.labels,
        "warnings": merge_latest(finetuned.warnings, evaluation.warnings),
    }


def _summary(outcome: CompareRunResult | TaskRunResult) -> str:
    if isinstance(outcome, TaskRunResult):
        return f"{outcome.metric} {outcome.value:.3f} on {outcome.split}"
    return f"accuracy {outcome.accuracy:.3f} on {outcome.split}"


def best_on_validation(runs: list[FinetuneResult]) -> FinetuneResult:
    """The run with the best validation accuracy (or metric of its task), then loss."""
    if len(runs) == 1:
        return runs[0]
    if any(not run.val_images for run in runs):
        raise DataError(
            "--rates needs a validation set, but no images are held out.",
            "Use one --lr instead of --rates, or add images of each class.",
        )

    def quality(run: FinetuneResult) -> tuple[float, float]:
        lines = [m for m in run.rows() if m.get("split") == "val"]
        epoch = lines[-1]["epoch"] if run.best_epoch is None else run.best_epoch
        line = next(m for m in lines if m["epoch"] == epoch)
        task = supervised_task(run.task)
        if task is None:
            return run.val_accuracy or 0.0, -line["loss"]
        value = float(line[task.metric])
        return (-value if task.lower_is_better else value), -line["loss"]

    return max(runs, key=quality)


def _show_plan(
    candidates: list[CompareStart], eval_data: dict[str, Any], s: CompareSettings, console: Console
) -> None:
    first = candidates[0].plan
    samples = "texts" if is_text_arch(str(first.settings["arch"])) else "images"
    of_classes = f" of {len(first.classes)} classes" if first.classes else ""
    counts = label_counts(s)
    counted = f"{' '.join(map(str, counts))} labels per class, " if s.labels_per_class else ""
    console.say(
        f"{first.images:,} training {samples}{of_classes}, "
        f"{counted}{pluralised(s.seeds, 'seed', 'seeds')}, "
        f"{len(candidates) * s.seeds * len(counts)} runs; "
        f"evaluated on {_describe(eval_data)}."
    )
    rates = f"best on val of {' '.join(f'{r:g}' for r in s.rates)}" if s.rates else ""
    rows = []
    for start in candidates:
        if start.weights == TFIDF:
            grams = "n-grams of words and characters"
            rows.append((TFIDF, grams, "", "", "", "", "logistic regression"))
            continue
        planned = start.plan.settings
        sizes = (str(planned[name] or "") for name in ("image_size", "epochs", "batch_size"))
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
