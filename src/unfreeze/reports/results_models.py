"""What commands that use a model print at the end, from the fields of their results."""

from collections.abc import Mapping, Sequence
from typing import Any

from unfreeze.reports.glossary import METRICS, format_metric, metric_name
from unfreeze.reports.results_runs import named_classes, warning_messages
from unfreeze.reports.verdict import (
    accuracy_sentence,
    existing_files,
    next_commands,
    on_images,
    percent,
    samples_of,
    short_number,
)
from unfreeze.runtime.display import Display
from unfreeze.runtime.text_layout import TextTable

CLASSES = 40  # rows of a table on the terminal
NO_ANSWER = "(no answer)"
TOP5 = 20  # classes from which on top-5 accuracy is informative
SECONDARY_METRICS = ("macro_f1", "top5", "loss", "calibration_error")


def evaluate_display(r: Any, run: str | None) -> Display:
    """Display of an `Evaluation`; `run`: the run folder, if there is one."""
    low, high = (percent(bound) for bound in r.balanced_interval)
    facts = [("balanced accuracy", f"{percent(r.balanced_accuracy)} (95 %: {low} to {high})")]
    facts += [
        (METRICS[key].name, format_metric(key, getattr(r, key)))
        for key in SECONDARY_METRICS
        if key != "top5" or len(r.classes) >= TOP5
    ]
    facts += [("temperature", _temperature(r.temperature))] if r.temperature else []
    facts += _unknown(r.unknown, samples_of(getattr(r, "task", None))) if r.unknown else []
    return Display(
        lead=[accuracy_sentence(vars(r))],
        warnings=warning_messages(r),
        facts=facts,
        tables=[class_table(r.classes, r.confusion)] if len(r.classes) <= CLASSES else [],
        notes=caveats(r),
        files=existing_files(run, *_WRITTEN) if run else [],
        next=[command for command in next_commands(run) if " predict " in command] if run else [],
        plots=existing_files(run, "curves.png") if run else [],
    )


def _unknown(u: Any, samples: str) -> list[tuple[str, str]]:
    """What `predict --unknown` would say of the images."""
    if u.reason:
        return [(f"unknown {samples}", f"not evaluated. {u.reason}")]
    low, high = (percent(bound) for bound in u.coverage_interval)
    answered = f"{percent(u.answered)} of {u.n:,} {samples}"
    if u.accuracy_answered is not None:
        bounds = " to ".join(percent(bound) for bound in u.accuracy_answered_interval)
        answered += f", {percent(u.accuracy_answered)} of them correctly (95 %: {bounds})"
    sets = (
        f"{u.set_size:.1f} labels, with the true one for {percent(u.coverage)} (95 %: {low} to "
        f"{high}; set to {percent(u.level, 0)})"
    )
    return [("answered", answered), ("set of labels", sets)]


_WRITTEN = ("report.html", "predictions.csv", "mistakes.csv", "evaluation.json")


def _temperature(t: Any) -> str:
    saved = "saved with the model" if t.kept else "not saved"
    text = (
        f"{t.value:.3g}, fitted on {t.n:,} validation images ({saved}): cross-entropy "
        f"{t.loss:.3f}, calibration error {percent(t.calibration_error)}"
    )
    if t.bounded:
        text += "; all of them are classified correctly, so it is unreliable"
    return text


def caveats(r: Any) -> list[str]:
    """Which weights were evaluated, and what biases the accuracy."""
    lines, samples = [], samples_of(getattr(r, "task", None))
    if r.last:
        low, high = (percent(bound) for bound in r.last.interval)
        lines.append(
            f"These are the weights of epoch {r.epoch}, the best on validation; those of the last "
            f"epoch, {r.last.epoch}, give {percent(r.last.accuracy)} (95 %: {low} to {high})."
        )
    if r.used_for_choosing:
        lines.append(
            f"The best epoch was selected on these {samples}: expect less on new {samples}."
        )
    if r.seen_in_training:
        lines.append(f"{r.seen_in_training:,} of these {samples} were in the training set.")
    if r.test_uses and r.test_uses > 1:
        lines.append(
            f"The test {samples} were evaluated {r.test_uses} times with this run: choices made "
            "since the first time bias the accuracy upwards."
        )
    elif r.test_uses:
        lines.append(f"The test {samples} were evaluated once with this run.")
    return lines


def class_table(classes: list[str], confusion: list[list[int]]) -> TextTable:
    """TextTable of recall, precision and most frequent confusion of each class."""
    rows = []
    for index, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        wrong = [0 if other == index else count for other, count in enumerate(row)]
        worst = max(range(len(row)), key=wrong.__getitem__) if any(wrong) else None
        confused = "" if worst is None else f"{classes[worst]} ({wrong[worst]})"
        predict_display = sum(other[index] for other in confusion)
        shares = [percent(row[index] / n) if n else "-" for n in (sum(row), predict_display)]
        rows.append((name, f"{sum(row):,}", f"{row[index]:,}", *shares, confused))
    return TextTable(
        ("class", "images", "correct", "recall", "precision", "most often confused with"), rows
    )


def embed_display(r: Any) -> Display:
    """Display of an `EmbedResult`."""
    return Display(
        lead=[f"{r.width:,} features for each of {r.images:,} images, from {r.arch}."],
        facts=[("classes", named_classes(r.classes))] if r.classes else [],
        files=[("features", r.out)],
        next=[f"python -c \"import numpy; print(numpy.load('{r.out}')['features'].shape)\""],
    )


_PREPROCESSING = " with preprocessing"
_OUTPUTS = ("outputs", "probabilities")


def _int8(q: Any) -> str:
    low, high = (percent(bound) for bound in q.interval)
    return (
        f"accuracy {percent(q.accuracy)} (95 %: {low} to {high}) where float has "
        f"{percent(q.float_accuracy)}, on {on_images(q.n, q.split)}; {q.milliseconds:.1f} ms an "
        f"image where float takes {q.float_milliseconds:.1f}"
    )


def export_display(r: Any) -> Display:
    """Display of an `ExportResult`."""
    return Display(
        lead=[
            f"{r.arch} for {r.to}{_PREPROCESSING * r.with_preprocessing}: its "
            f"{_OUTPUTS[r.with_preprocessing and bool(r.classes)]} equal the run's on "
            f"{r.compared_on} (largest difference {r.max_difference:.2g}, allowed "
            f"{r.tolerance:.2g})."
        ],
        facts=[
            *([("classes", named_classes(r.classes))] if r.classes else []),
            *([("int8", _int8(r.int8))] if r.int8 else []),
        ],
        notes=_uploaded(r.hub) if r.hub else [],
        files=[*([("folder", r.out)] if r.out else []), ("contents", ", ".join(r.files))],
        next=[f"cat {r.out}/README.md"] if r.out else [],
    )


def _uploaded(hub: Any) -> list[str]:
    kind = "private" if hub.private else "public"
    return [
        f"Uploaded to {hub.url} ({kind}), commit {hub.commit[:8]}: the digests of all "
        f"{len(hub.files)} files there are those of the files here."
    ]


def report_display(r: Any) -> Display:
    """Display of a `ReportResult`."""
    return Display(
        files=existing_files(r.run, "report.html", "curves.png", "prototypes.png"),
        next=next_commands(r.run),
        plots=existing_files(r.run, "curves.png", "prototypes.png"),
    )


def predict_display(r: list[Any]) -> Display:
    """Display of `Predictions`: counts of labels, then each image."""
    counts: dict[str, int] = {}
    for prediction in r:
        label = NO_ANSWER if prediction.label is None else prediction.label
        counts[label] = counts.get(label, 0) + 1
    most = sorted(counts, key=lambda label: -counts[label])
    labels = ", ".join(f"{label} {counts[label]:,}" for label in most[:8])
    more = f" and {len(most) - 8:,} other labels" if len(most) > 8 else ""
    ranked, sets = bool(r) and r[0].top is not None, bool(r) and r[0].set is not None
    rows = [
        (
            p.path,
            NO_ANSWER if p.label is None else p.label,
            percent(p.probability),
            *([_others(p.top)] if ranked else []),
            *([", ".join(p.set) or "none", percent(p.ood)] if sets else []),
        )
        for p in r
    ]
    columns = ("path", "label", "probability", *(["then"] if ranked else []))
    return Display(
        lead=[f"{len(r):,} images: {labels}{more}." if r else "No images."],
        tables=[TextTable((*columns, *(["set", "odder than"] if sets else [])), rows)],
    )


def _others(top: list[dict[str, Any]]) -> str:
    return ", ".join(f"{entry['label']} {percent(entry['probability'])}" for entry in top[1:])


def task_predictions_display(r: Sequence[dict[str, Any]]) -> Display:
    """Display of `TaskPredictions`, given as cells: the values of each image."""
    rows = [tuple(f"{v:.4g}" if isinstance(v, float) else str(v) for v in p.values()) for p in r]
    return Display(
        lead=[f"{len(r):,} images." if r else "No images."],
        tables=[TextTable(tuple(r[0]), rows)] if r else [],
    )


def task_evaluation_display(r: Any) -> Display:
    """Display of a `TaskEvaluation`."""
    facts = []
    for name, value in r.metrics.items():
        limits = r.intervals.get(name)
        bounds = f" (95 %: {limits[0]:.4g} to {limits[1]:.4g})" if limits else ""
        facts.append((metric_name(name), f"{short_number(value)}{bounds}"))
    return Display(
        lead=[f"Evaluated on {on_images(r.n, r.split)} (task {r.task})."],
        warnings=warning_messages(r),
        facts=[*facts, ("loss", f"{r.loss:.4g}")],
        tables=_task_tables(r.details),
        files=existing_files(r.run, "report.html", "predictions.csv", "evaluation.json")
        if r.run
        else [],
        next=[command for command in next_commands(r.run) if " predict " in command]
        if r.run
        else [],
    )


def _task_tables(details: Mapping[str, Any]) -> list[TextTable]:
    """IoU by class of segmentation; metrics and threshold by class of several labels."""
    if "iou" in details:
        iou = details["iou"].items()
        rows = [(name, "no pixels" if v is None else f"{v:.3f}") for name, v in iou]
        return [TextTable(("class", "IoU"), rows)]
    if "thresholds" not in details or len(details["per_class"]) > CLASSES:
        return []
    names = ("ap", "f1", "precision", "recall", "threshold")
    found = [
        (row["name"], f"{row['n']:,}", *(_number(row[name]) for name in names), row[FROM])
        for row in details["per_class"]
    ]
    header = ("class", "images", "AP", "F1", "precision", "recall", "threshold", "chosen for")
    return [TextTable(header, found)]


FROM = "threshold_from"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def predictions_file_display(r: Any) -> Display:
    """Display of a `WrittenPredictions`."""
    return Display(lead=[f"Predictions for {r.images:,} images."], files=[("predictions", r.out)])


def summary_display(r: Any) -> Display:
    """Display of a `Summary`: the layer table by stage, and totals."""
    rows: list[tuple[str, ...]] = []
    stage: object = object()
    for layer in r.layers:
        if layer["stage"] != stage:
            stage = layer["stage"]
            rows.append((_title(stage, r.stages),))
        rows.append(_cells(layer))
    share = r.megabytes / max(r.parameters_total, 1)
    totals = [
        f"Total params: {r.parameters_total:,} ({r.megabytes:.2f} MB)",
        f"Trainable params: {r.parameters_trainable:,} ({share * r.parameters_trainable:.2f} MB)",
        f"Non-trainable params: {r.parameters_frozen:,} ({share * r.parameters_frozen:.2f} MB)",
    ]
    head = ("Layer (type)", "Output shape", "Param #", "Trainable")
    return Display(
        lead=[r.arch],
        tables=[TextTable(head, rows)],
        notes=totals,
        next=[f"unfreeze finetune DATA --arch {r.arch} --freeze stage:1 --out RUN"]
        if len(r.stages) > 1
        else [],
    )


def _title(number: object, stages: list[dict[str, Any]]) -> str:
    if not isinstance(number, int):
        return "· head"
    stage = stages[number]
    return f"· stage {number}: {stage['name']} ({stage['parameters']:,} parameters)"


def _cells(layer: dict[str, Any]) -> tuple[str, str, str, str]:
    batch = [] if layer["type"] == "Parameter" else ["None"]
    shape = f"({', '.join([*batch, *map(str, layer['output'])])})" if layer["output"] else "-"
    trainable = ("Y" if layer["trainable"] else "N") if layer["parameters"] else "-"
    return f"{layer['name']} ({layer['type']})", shape, f"{layer['parameters']:,}", trainable
