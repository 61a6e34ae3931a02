"""The plots of a run: its metrics sorted into panels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unfreeze.config.finetune import CLASSIFICATION, TEXT_CLASSIFICATION
from unfreeze.reports.glossary import METRICS
from unfreeze.reports.run_reader import RunData

ENOUGH = 10  # images per bin of the reliability diagram, at least
POINTS = 120  # per curve, at most: records are dense in the first steps and sparse afterwards


@dataclass(frozen=True)
class Curve:
    """One curve; `spread` draws error bars, `faint` uses a muted colour."""

    name: str
    x: list[float]
    y: list[float]
    faint: bool = False
    spread: list[float] | None = None


@dataclass(frozen=True)
class PlotPanel:
    """One pair of axes; `level` is a dashed horizontal line and its name, `note` the caption.

    `span`: the smallest range of the y axis, so that noise does not fill it. `shows`: values that
    the y axis always includes. `low`, `high`: its limits.
    """

    title: str
    lines: list[Curve]
    x_name: str = "epoch"
    level: tuple[float, str] | None = None
    share: bool = False  # the y axis is a share from 0 to 1
    x_share: bool = False  # the x axis too
    span: float = 0.0
    shows: tuple[float, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    note: str = ""


def panels(findings: RunData) -> list[PlotPanel]:
    """The panels with at least one curve of two points or more, in reading order."""
    candidates = (
        _demo(findings.demo),
        _loss(findings),
        *(_task_metrics(findings) if other_task(findings) else [_accuracy(findings)]),
        _figures(findings),
        _prototypes(findings),
        _learning_rate(findings),
        _calibration(findings.evaluation),
        _risk_coverage(findings.evaluation),
    )
    x = "epoch" if findings.facts.get("steps_per_epoch") else "step"
    curves = [p for p in candidates if p is not None and any(len(line.x) > 1 for line in p.lines)]
    return [replace(p, x_name=x) if p.x_name == "epoch" else p for p in curves]


def _demo(demo: Mapping[str, Any] | None) -> PlotPanel | None:
    if demo is None:
        return None
    lines = []
    for method, row in demo["results"].items():
        counts = sorted(row, key=int)
        means, spreads = zip(*(row[count] for count in counts), strict=True)
        lines.append(Curve(method, [float(c) for c in counts], list(means), spread=list(spreads)))
    return PlotPanel(
        "Accuracy by number of labels", lines, x_name="labels per class", share=True, high=1.0
    )


def _loss(findings: RunData) -> PlotPanel:
    K = findings.settings.get("nmb_prototypes")
    what = f"Loss of the task {other_task(findings)}" if other_task(findings) else "Cross-entropy"
    level, note = None, f"{what}, averaged over each interval."
    if isinstance(K, int) and K > 1:
        level = (math.log(K), f"ln {K} = {math.log(K):.2f}: guessing")
        note = (
            "Cross-entropy between codes and predictions of different crops. A loss that stays at "
            "the dashed line means collapse; the codes change too, so the loss may rise again."
        )
    if findings.settings.get("teacher"):
        level = (1.0, "1: guessing")
        note = (
            "1 - cosine of each crop's prediction with the teacher's features of the whole image."
        )
    # --find-lr logs every rate at step 0, up to where the loss diverges
    trained = [record for record in findings.metrics if record.get("split") != "find-lr"]
    lines = _lines(findings, trained, "loss")
    largest = max((abs(v) for line in lines for v in line.y), default=1.0)
    return PlotPanel("Loss", lines, level=level, span=0.1 * largest, low=0.0, note=note)


def other_task(findings: RunData) -> str:
    """The name of a task other than classification; "" for classification."""
    task = findings.settings.get("task", CLASSIFICATION)
    return "" if task in ("auto", CLASSIFICATION, TEXT_CLASSIFICATION) else str(task)


# values of a validation line that are no metrics of the task
POSITION = ("step", "epoch", "split", "total", "loss")


def _task_metrics(findings: RunData) -> list[PlotPanel]:
    """A panel for each metric of another task."""
    validated = [record for record in findings.metrics if record.get("split") == "val"]
    names = [name for name in (validated[-1] if validated else {}) if name not in POSITION]
    return [
        PlotPanel(f"{name.replace('_', ' ')} (val)", _lines(findings, validated, name))
        for name in names
    ]


def _accuracy(findings: RunData) -> PlotPanel:
    lines = _lines(findings, findings.metrics, "accuracy")
    note = "Share of images whose predicted class is their label."
    knn = [
        replace(line, name="k-NN" if line.name == "val" else f"k-NN, {line.name}")
        for line in _lines(findings, findings.metrics, "knn_accuracy")
    ]
    if knn:
        note = f"{METRICS['knn_accuracy'].name}: {METRICS['knn_accuracy'].meaning}."
    probe = [
        replace(line, name="linear probe")
        for line in _lines(findings, findings.metrics, "linear_accuracy")
    ]
    lines += knn + probe
    of = f" ({lines[0].name})" if len(lines) == 1 else ""
    title = f"Accuracy{of}"
    if knn and len(lines) == len(knn + probe):
        title = "k-NN and linear probe accuracy" if probe else "k-NN accuracy"
    return PlotPanel(title, lines, share=True, span=0.2, low=0.0, high=1.0, note=note)


def _prototypes(findings: RunData) -> PlotPanel:
    K = findings.settings.get("nmb_prototypes")
    level = (float(K), f"all {K}") if isinstance(K, int) else None
    lines = _lines(findings, findings.metrics, "prototypes_used")
    note = "Effective number of prototypes used by a batch (perplexity of its mean code)."
    return PlotPanel("Prototypes in use", lines, level=level, shows=(0.0,), low=0.0, note=note)


def _figures(findings: RunData) -> PlotPanel:
    keys = ("information", "agreement", "code_entropy")
    evaluations = [record for record in findings.metrics if record.get("split") == "figures"]
    lines = [
        replace(line, name=METRICS[key].name)
        for key in keys
        for line in _lines(findings, evaluations, key)
    ]
    note = " ".join(
        f"{METRICS[key].name.capitalize()}: {METRICS[key].meaning}."
        for key in keys
        if any(line.name == METRICS[key].name for line in lines)
    )
    return PlotPanel(
        "Feature evaluation without labels", lines, share=True, shows=(0.0, 1.0), note=note,
    )  # fmt: skip


def _learning_rate(findings: RunData) -> PlotPanel:
    lines = [
        line
        for line in _lines(findings, findings.metrics, "learning_rate", mean=False)
        if line.name == "train"
    ]
    return PlotPanel("Learning rate", lines, shows=(0.0,))


def _calibration(evaluation: Mapping[str, Any] | None) -> PlotPanel | None:
    bins = (evaluation or {}).get("calibration")
    if not bins or not evaluation:
        return None
    confidence, accuracy = _merged(bins)
    lines = [
        Curve("perfectly calibrated", [0.0, 1.0], [0.0, 1.0], faint=True),
        Curve(str(evaluation.get("split", "model")), confidence, accuracy),
    ]
    return PlotPanel(
        "Reliability diagram",
        lines,
        x_name="confidence",
        share=True,
        x_share=True,
        shows=(0.0, 1.0),
        note="Accuracy of the images in each confidence bin. Below the diagonal the model is "
        "overconfident.",
    )


def _risk_coverage(evaluation: Mapping[str, Any] | None) -> PlotPanel | None:
    values = (evaluation or {}).get("unknown")
    if not values or not evaluation or not values.get("curve"):
        return None
    coverage, risk = zip(*values["curve"], strict=True)
    lines = [Curve(str(evaluation.get("split", "model")), list(coverage), list(risk))]
    return PlotPanel(
        "Errors by share of answered images",
        lines,
        x_name="answered",
        share=True,
        x_share=True,
        span=0.1,
        shows=(0.0,),
        low=0.0,
        high=1.0,
        note="Share of errors if only the most confident images are answered (risk-coverage "
        "curve). A model that knows what it does not know starts at 0 and rises late.",
    )


def _merged(bins: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """(confidence, accuracy) of the bins, merged until each has enough images."""
    enough = max(ENOUGH, sum(b["n"] for b in bins) // 10)
    groups: list[list[Mapping[str, Any]]] = [[]]
    for calibration_bin in bins:
        if sum(b["n"] for b in groups[-1]) >= enough:
            groups.append([])
        groups[-1].append(calibration_bin)
    if len(groups) > 1 and sum(b["n"] for b in groups[-1]) < enough:
        last = groups.pop()
        groups[-1] += last
    means = [
        [sum(b[key] * b["n"] for b in group) / sum(b["n"] for b in group) for group in groups]
        for key in ("confidence", "accuracy")
    ]
    return means[0], means[1]


def _lines(
    findings: RunData, metrics: Sequence[Mapping[str, Any]], key: str, *, mean: bool = True
) -> list[Curve]:
    """One line per split over epochs; `train` is faint if there is another split."""
    steps = findings.facts.get("steps_per_epoch") or 1  # without steps_per_epoch, x is in steps
    logged = [record for record in metrics if _number(record.get(key)) and "step" in record]
    names = list(dict.fromkeys(str(record.get("split", "train")) for record in logged))
    lines = []
    for name in names:
        rows = [record for record in logged if str(record.get("split", "train")) == name]
        x, y = [float(r["step"]) for r in rows], [float(r[key]) for r in rows]
        x, y = resample_curve(x, y, mean=mean)
        epochs = [step / steps for step in x]
        lines.append(Curve(name, epochs, y, faint=name == "train" and len(names) > 1))
    return lines


def resample_curve(
    x: Sequence[float], y: Sequence[float], *, points: int = POINTS, mean: bool = True
) -> tuple[list[float], list[float]]:
    """The curve resampled to at most `points` equal bins of x: the mean of each bin, or its last.

    The first and the last point are kept.
    """
    if len(x) <= 2 or x[-1] <= x[0]:
        return list(x), list(y)
    width = (x[-1] - x[0]) / points
    members: dict[int, list[int]] = {}
    for index, value in enumerate(x):
        members.setdefault(min(points - 1, int((value - x[0]) / width)), []).append(index)
    bins = list(members.values())
    if mean:
        xs = [sum(x[i] for i in indices) / len(indices) for indices in bins]
        ys = [sum(y[i] for i in indices) / len(indices) for indices in bins]
    else:
        xs, ys = ([values[indices[-1]] for indices in bins] for values in (x, y))
    if not mean or len(bins[0]) == 1:
        xs[0], ys[0] = x[0], y[0]
    return xs, ys


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
