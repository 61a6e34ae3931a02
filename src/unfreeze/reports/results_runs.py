"""What commands that train print at the end, from the fields of their results."""

from collections.abc import Mapping
from typing import Any

from unfreeze.config.finetune import CLASSIFICATION, TEXT_CLASSIFICATION
from unfreeze.reports.comparison import LabelCountTable, Score, pretraining_time, samples_of_arch
from unfreeze.reports.continued import pretrained_sentences
from unfreeze.reports.glossary import METRICS, format_metric, metric_name
from unfreeze.reports.intervals import wilson_interval
from unfreeze.reports.verdict import (
    demo_sentence,
    existing_files,
    finite,
    next_commands,
    on_images,
    percent,
    read_settings,
    samples_of,
    short_number,
)
from unfreeze.runtime.console import pluralised
from unfreeze.runtime.display import Display
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.runtime.text_layout import TextTable

SHOWN = ("information", "agreement", "effective_rank", "effective_rank_projected", "code_entropy")
KEPT = {
    "last": "",
    "best": "weights of the best epoch",
    "start": "the weights of --init, unchanged",
}
MINUTES = ("pretraining, min", "a run, min")
CLASSES = 8  # names listed in one line


def warning_messages(result: Any) -> list[str]:
    """The messages of a result's warnings."""
    return [warning["message"] for warning in getattr(result, "warnings", None) or ()]


def finetune_display(r: Any) -> Display:
    """Display of a `FinetuneResult`."""
    facts = [
        ("network", r.arch),
        ("weights", "" if r.weights_matched is None else _matched(r.weights_matched)),
        ("classes", named_classes(r.classes)),
        ("trainable", _trained(r)),
        ("epochs", _epochs(r)),
        ("time", _time(r)),
        ("cross-validation", _repeated(r.repeated) if r.repeated else ""),
    ]
    return Display(
        lead=[_validated(r)],
        warnings=warning_messages(r),
        facts=[pair for pair in facts if pair[1]],
        files=existing_files(r.run, "report.html", "model", "problems.csv"),
        next=next_commands(r.run),
        plots=existing_files(r.run, "curves.png"),
    )


def _validated(r: Any) -> str:
    if r.task not in (CLASSIFICATION, TEXT_CLASSIFICATION) and r.val_metrics:
        chosen = " The best epoch was selected on them." if r.best_epoch is not None else ""
        return f"On {on_images(r.val_images, 'val')}: {metrics_text(r.val_metrics)}.{chosen}"
    if r.val_accuracy is None:
        return (
            f"Trained on all {samples_of(r.task)}: there was no validation set, so the accuracy is "
            "not known."
        )
    low, high = (percent(bound) for bound in r.val_interval)
    accuracy = (
        f"{percent(r.val_accuracy)} of {on_images(r.val_images, 'val', r.task)} are classified "
        "correctly "
        f"(95 % interval {low} to {high})"
    )
    if r.best_epoch is None:
        return f"{accuracy}."
    return (
        f"{accuracy}. The best epoch was selected on them: expect less on new {samples_of(r.task)}."
    )


def metrics_text(values: Mapping[str, Any]) -> str:
    """Metrics of a task, as `name value, name value`."""
    shown = ((name, value) for name, value in values.items() if name not in ("total", "n"))
    return ", ".join(f"{metric_name(name)} {short_number(value)}" for name, value in shown)


def _matched(share: float) -> str:
    return f"{percent(share, 0 if share == 1 else 1)} of the backbone's parameters were loaded"


def named_classes(classes: list[str]) -> str:
    """`6: cardboard, glass, ...`."""
    some = ", ".join(classes[:CLASSES])
    more = f" and {len(classes) - CLASSES:,} more" if len(classes) > CLASSES else ""
    return f"{len(classes)}: {some}{more}" if classes else ""


def _trained(r: Any) -> str:
    total = r.parameters_trainable + r.parameters_frozen
    trainable = f"{r.parameters_trainable:,} of {total:,} parameters"
    if not r.parameters_frozen:
        return trainable
    state = "unchanged" if r.frozen_unchanged else "NOT unchanged"
    return f"{trainable}; {r.parameters_frozen:,} are frozen and {state} in the saved model"


def _epochs(r: Any) -> str:
    best = "" if r.best_epoch is None else f"; the best is {r.best_epoch} (counted from 0)"
    return f"{r.epochs:,} over {r.images:,} {samples_of(r.task)}{best}"


def _time(r: Any) -> str:
    samples = samples_of(getattr(r, "task", None))
    rate = f", {r.images_per_second:,.0f} {samples}/s" if r.images_per_second else ""
    return f"{format_duration(r.seconds)}{rate}"


def format_duration(seconds: float) -> str:
    """`25 s`, `4.5 min`, `3.2 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _repeated(r: Any) -> str:
    metric = getattr(r, "metric", "")
    low, high = (f"{v:.3f}" if metric else percent(v) for v in r.interval)
    folds = f"{r.folds} folds" if r.folds else "repeated validation splits"
    seeds = f", {len(r.seeds)} seeds" if len(r.seeds) > 1 else ""
    if metric:
        return f"{metric} {r.value:.3f} (95 % interval {low} to {high}; {folds}{seeds})"
    return (
        f"{percent(r.accuracy)} of {r.n:,} images (95 % interval {low} to {high}; {folds}{seeds})"
    )


def pretrain_display(r: Any) -> Display:
    """Display of a `PretrainResult`."""
    metrics, K = read_metrics(r.run), read_settings(r.run).get("nmb_prototypes")
    lead = pretrained_sentences(metrics, K, r.continued)
    facts = [
        ("network", r.arch),
        ("epochs", f"{r.epochs:,} over {r.images:,} images, {r.steps:,} steps"),
        ("processes", f"{r.processes:,}" if r.processes > 1 else ""),
        ("loss", "" if r.loss is None else f"{r.loss:.3f}"),
        ("k-NN", _knn(r.knn)),
        ("best", _best(r.best)),
        ("model", KEPT[r.kept]),
        ("time", _time(r)),
    ]
    return Display(
        lead=lead or ["The untrained weights were saved."],
        warnings=warning_messages(r),
        facts=[pair for pair in facts if pair[1]],
        tables=[_figures(metrics, r.figures)] if r.figures else [],
        files=existing_files(r.run, "report.html", "model", "prototypes.png", "problems.csv"),
        next=next_commands(r.run),
        plots=existing_files(r.run, "curves.png", "prototypes.png"),
    )


def _knn(knn: Mapping[str, Any] | None) -> str:
    if not knn:
        return ""
    low, high = (percent(bound) for bound in wilson_interval(knn["correct"], knn["total"]))
    start = knn.get("at_start")
    before = "" if start is None else f"; {percent(start)} before the first step"
    if knn.get("teacher"):
        before += f", {percent(knn['teacher'])} with the teacher's features"
    return (
        f"{percent(knn['accuracy'])} of {on_images(knn['total'], knn['split'])} (95 % interval "
        f"{low} to {high}){before}"
    )


def _best(best: Mapping[str, Any] | None) -> str:
    if not best:
        return ""
    share = best["figure"] in ("linear", "knn", "information")
    names = {"linear": "linear probe", "knn": "k-NN"}
    by = names.get(best["figure"], best["figure"].replace("_", " "))
    value = percent(best["value"]) if share else f"{best['value']:.2f}"
    name = f"epoch {best['epoch']}" if best["epoch"] else "the start"
    return f"{name} by {by} ({value}): {best['checkpoint']}"


def _figures(metrics: list[dict[str, Any]], last: Mapping[str, float]) -> TextTable:
    """TextTable of the main feature evaluation metrics, before the first step and at the end."""
    first = next((r for r in metrics if r.get("split") == "figures"), {})
    untrained = first if first.get("step") == 0 else {}
    rows = [
        (
            METRICS[key].name,
            format_metric(key, untrained.get(key) if finite(untrained.get(key)) else None),
            format_metric(key, last[key]),
        )
        for key in SHOWN
        if key in last
    ]
    return TextTable(("feature evaluation", "untrained", "now"), rows)


def _of_seeds(start: Any) -> list[float]:
    values: list[float] = start.accuracies if hasattr(start, "accuracies") else start.values
    return values


def compare_display(r: Any) -> Display:
    """Display of a `Comparison`."""
    score = Score.of(vars(r))
    means = [start.accuracy if score.percent else start.value for start in r.starts]
    rows = [
        (
            start.name,
            score.value(mean),
            "{} to {}".format(*(score.value(bound) for bound in start.interval)),
            " ".join(score.value(value).removesuffix(" %") for value in _of_seeds(start)),
            pretraining_time(start.pretraining_seconds),
            f"{start.seconds / 60:.1f}",
        )
        for start, mean in zip(r.starts, means, strict=True)
    ]
    samples = samples_of_arch(getattr(r, "arch", None))
    name = score.name
    subject = "Accuracy" if score.percent else name
    where = f"{subject} on {on_images(r.n, r.split).replace('images', samples)}"
    if r.split == "val" and any(run.best_epoch is not None for run in r.runs):
        where += f", on which the best epoch was selected: expect less on new {samples}"
    best = r.starts[means.index((min if score.lower_is_better else max)(means))]
    run = next((trial.run for trial in r.runs if trial.weights == best.weights), r.out)
    by_labels = LabelCountTable.of(r.by_labels)
    each = "each seed, %" if score.percent else "each seed"
    return Display(
        lead=[r.verdict],
        warnings=warning_messages(r),
        tables=[TextTable(tuple(by_labels.header), [tuple(row) for row in by_labels.rows])]
        if by_labels
        else [TextTable(("weights", name, "95 % interval", each, *MINUTES), rows)],
        notes=[f"{where}."],
        files=existing_files(r.out, "report.html", "compare.csv"),
        next=[command for command in next_commands(run) if " predict " in command],
    )


def runs_display(r: Any) -> Display:
    """Display of a `RunTable`."""
    rows = [
        (
            run.path,
            run.task if run.kind == "finetune" and run.task else run.kind,
            run.arch or "",
            run.data or "",
            _run_score(run),
            run.date if run.state == "finished" else f"{run.date}, {run.state}",
        )
        for run in r.runs
    ]
    table = TextTable(("run", "task", "network", "data", "result", "date"), rows)
    nothing = f"No runs in {r.folder}."
    return Display(
        lead=[f"{pluralised(len(rows), 'run', 'runs')} in {r.folder}." if rows else nothing],
        tables=[table] if rows else [],
    )


def _run_score(run: Any) -> str:
    if run.value is None:
        return ""
    score = Score(run.metric if run.metric != "k-NN accuracy" else "accuracy")
    bounds = [score.value(bound) for bound in run.interval or ()]
    interval = f" [{bounds[0]}, {bounds[1]}]" if bounds else ""
    where = f" on {run.split}" if run.split else ""
    return f"{run.metric} {score.value(run.value)}{interval}{where}"


def demo_display(r: Any) -> Display:
    """Display of a `DemoResult`: accuracy by method and number of labels, mean and deviation."""
    counts = list(next(iter(r.results.values()), {}))
    rows = [
        (method, *(f"{100 * mean:.1f} ± {100 * std:.1f}" for mean, std in row.values()))
        for method, row in r.results.items()
    ]
    head = ("accuracy on test, %", *(f"{count} per class" for count in counts))
    return Display(
        lead=[demo_sentence(r.results)],
        tables=[TextTable(head, rows)],
        notes=[
            f"Mean and standard deviation over draws of labels. {format_duration(r.seconds)} "
            "in all."
        ],
        files=existing_files(r.run, "report.html", "curves.png", "prototypes.png"),
        next=["unfreeze pretrain YOUR_IMAGES --dry-run"],
        plots=existing_files(r.run, "curves.png", "prototypes.png"),
    )


def settings_table(reasons: Mapping[str, str], settings: Mapping[str, Any]) -> TextTable:
    """TextTable of derived settings with value and reason."""
    rows = [
        (name.replace("_", "-"), format_setting(settings.get(name, "")), reason)
        for name, reason in reasons.items()
    ]
    return TextTable(("setting", "value", "why"), rows)


def plan_rows(r: Any) -> list[dict[str, Any]]:
    """One row per derived setting of a plan."""
    return [
        {"setting": name, "value": r.settings.get(name), "why": why}
        for name, why in r.reasons.items()
    ]


def finetune_plan_display(r: Any) -> Display:
    """Display of a `FinetunePlan`."""
    facts = [
        ("images", f"{r.images:,} to train on, {r.steps:,} steps"),
        ("classes", named_classes(r.classes)),
        ("trainable", f"{r.parameters_trainable:,} parameters; {r.parameters_frozen:,} are frozen"),
        *_cost(r),
    ]
    return Display(
        lead=["Dry run: nothing was written."],
        facts=[pair for pair in facts if pair[1]],
        tables=[settings_table(r.reasons, r.settings)],
    )


def pretrain_plan_display(r: Any) -> Display:
    """Display of a `PretrainPlan`."""
    facts = [
        ("images", f"{r.images:,}, {r.steps:,} steps, {r.steps_per_epoch:,} per epoch"),
        *_cost(r),
    ]
    return Display(
        lead=["Dry run: nothing was written."],
        warnings=r.warnings,
        facts=facts,
        tables=[settings_table(r.reasons, r.settings)],
    )


def compare_plan_display(r: Any) -> Display:
    """Display of a `ComparePlan`."""
    return Display(
        lead=["Dry run: nothing was written."],
        facts=[("evaluated on", r.judged_by), ("runs", f"{len(r.runs):,}: {', '.join(r.runs)}")],
        tables=[settings_table(r.reasons, r.settings)],
    )


def _cost(r: Any) -> list[tuple[str, str]]:
    """Estimated time and memory, each with the basis of the estimate."""
    seconds, size = r.time.get("seconds"), r.memory.get("total")
    time = r.time["basis"] if seconds is None else f"{format_duration(seconds)} ({r.time['basis']})"
    memory = r.memory["basis"] if size is None else f"{size / 2**20:,.0f} MiB ({r.memory['basis']})"
    return [("time", time), ("memory", memory)]


def format_setting(value: Any) -> str:
    """A setting as typed on the command line."""
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return " ".join(map(format_setting, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
