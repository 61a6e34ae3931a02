"""`compare`: fine-tunes from several initial weights on the same images and compares accuracy."""

import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, cast

from unfreeze.commands.evaluate import evaluate_with_predictions
from unfreeze.commands.finetune import FinetunePlan, FinetuneResult, run_finetune
from unfreeze.commands.report import report
from unfreeze.config.commands import TFIDF, CompareSettings, EvaluateSettings
from unfreeze.config.field import flag, inputs_of
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.layering import as_dict, load_settings, read_run_config, to_toml
from unfreeze.config.shared import Data, data_name
from unfreeze.data.index.mask_pairs import has_masks
from unfreeze.errors import DataError, UsageError, resume_command
from unfreeze.evaluation.warnings import merge_latest
from unfreeze.experiments.compare import (
    CompareRunResult,
    Comparison,
    EvaluatedRun,
    compare_results,
)
from unfreeze.experiments.compare_starts import (
    CompareRun,
    CompareStart,
    all_starts,
    check_weights,
    compare_runs,
    evaluation_data,
)
from unfreeze.experiments.run_table import changed_settings, run_all, stored_result
from unfreeze.experiments.tfidf_run import train_tfidf
from unfreeze.models.text import is_text_arch
from unfreeze.reports.comparison import write_table
from unfreeze.reports.results_runs import compare_plan_display, plan_rows
from unfreeze.runs.finetuning.task_settings import open_training_source
from unfreeze.runs.python_call import python_call
from unfreeze.runs.run_warnings import show_result_warnings
from unfreeze.runtime.atomic import write_json, write_text
from unfreeze.runtime.console import Console, ProgressOnlyConsole, QuietConsole
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.run_folder import RunFolder, check_run_folder
from unfreeze.runtime.run_lock import RunFolderLocks
from unfreeze.runtime.text_layout import TextTable

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
        if has_masks(open_training_source(s)):
            raise UsageError(
                "compare supports classification only, and this data has masks.",
                "Run finetune with each of the --weights, then evaluate both runs.",
            )
        starts = all_starts(s, plan_run)
        eval_data = evaluation_data(s, starts[0].settings)
        _show_plan(starts, eval_data, s, console)
        if s.dry_run:
            names = [spec.run_name for spec in compare_runs(s, starts, Path())]
            return ComparePlan(as_dict(s), starts[0].plan.reasons, _describe(eval_data), names)
        folder_options: dict[str, Any] = {"resume": s.resume, "overwrite": s.overwrite}
        folder_options |= {"inputs": inputs_of(s), "hold": locks.take}
        run = RunFolder.create(str(s.out), **folder_options)
        specs = compare_runs(s, starts, run.path)
        read = EvaluatedRun.from_record
        todo = {spec.start.weights for spec in specs if stored_result(spec, read) is None}
        for start in starts:
            if start.weights in todo:
                check_weights(start, s, console)
        write_text(run.file("config.toml"), to_toml(as_dict(s), {"reasons": {}}))
        results = run_all(
            specs,
            lambda spec: train_and_evaluate(
                spec, eval_data, ProgressOnlyConsole(console), began=began
            ),
            read,
            console,
            summary=lambda one: f"accuracy {one.outcome.accuracy:.3f} on {one.outcome.split}",
            stopped=lambda number, _: f"Stopped in run {number} of {len(specs)}.",
            resume=resume_command("compare", s.data, run.path),
            finished=" (already finished)",
        )
        result = compare_results(s, starts, results, time.monotonic() - began)
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
    runs = []
    for variant in spec.variants:
        resume = "auto" if Path(str(variant.out)).exists() else None
        settings = replace(variant, resume=resume)
        runs.append(run_finetune(settings, console, began=began, draw=False))
    finetuned = best_on_validation(cast(list[FinetuneResult], runs))
    s, run = spec.settings, Path(finetuned.run)
    serving = {name: getattr(s, name) for name in ("device", "data_root", "workers")}
    eval_settings = EvaluateSettings(run=finetuned.run, weights_of="best", **eval_data, **serving)
    evaluation, predictions = evaluate_with_predictions(eval_settings, console)
    resolved = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    values = {**vars(finetuned), **vars(evaluation), "run": finetuned.run}
    values |= {"weights": spec.start.weights, "seed": s.seed, "lr": resolved.get("lr")}
    # a head may sweep by itself
    tried = len(runs) * max(1, len(resolved["facts"].get("tried", ())))
    values |= {"image_size": resolved.get("image_size"), "tried": tried}
    values |= {"warnings": merge_latest(finetuned.warnings, evaluation.warnings)}
    outcome = CompareRunResult(**{f.name: values[f.name] for f in fields(CompareRunResult)})
    report(finetuned.run)
    each = predictions.each
    return EvaluatedRun(outcome, [one.path for one in each], [one.right for one in each])


def best_on_validation(runs: list[FinetuneResult]) -> FinetuneResult:
    """The run with the best validation accuracy, then loss; the test set is not used."""
    if len(runs) == 1:
        return runs[0]
    if any(run.val_accuracy is None for run in runs):
        raise DataError(
            "--rates needs a validation set, but no images are held out.",
            "Use one --lr instead of --rates, or add images of each class.",
        )

    def quality(run: FinetuneResult) -> tuple[float, float]:
        lines = [m for m in run.rows() if m.get("split") == "val"]
        epoch = lines[-1]["epoch"] if run.best_epoch is None else run.best_epoch
        return run.val_accuracy or 0.0, -next(m["loss"] for m in lines if m["epoch"] == epoch)

    return max(runs, key=quality)


def _show_plan(
    candidates: list[CompareStart], eval_data: dict[str, Any], s: CompareSettings, console: Console
) -> None:
    first = candidates[0].plan
    samples = "texts" if is_text_arch(str(first.settings["arch"])) else "images"
    console.say(
        f"{first.images:,} training {samples} of {len(first.classes)} classes, "
        f"{s.seeds} seeds, {len(candidates) * s.seeds} runs; evaluated on {_describe(eval_data)}."
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
