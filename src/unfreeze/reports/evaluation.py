"""The evaluation on the page: metrics with their meaning, caveats, and example images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from unfreeze.reports.examples import (
    BEST_MAPS,
    CORRECT,
    LOW_CONFIDENCE,
    MEDIAN_MAPS,
    WORST_MAPS,
    WRONG,
    Example,
)
from unfreeze.reports.glossary import METRICS, format_metric, metric_name
from unfreeze.reports.intervals import wilson_interval
from unfreeze.reports.results_models import TOP5
from unfreeze.reports.verdict import percent, samples_of, short_number

KEYS = ("balanced_accuracy", "macro_f1", "top5", "loss", "calibration_error")
SIDE_BY_SIDE = "Image, label and prediction; pixels without colour are ignored."
TITLES = {
    WRONG: ("Wrong", "The most certain mistakes. mistakes.csv lists all of them."),
    LOW_CONFIDENCE: ("Unsure", "The images with the lowest confidence."),
    CORRECT: ("Right", "Classified correctly with the highest confidence, class by class."),
    WORST_MAPS: ("Lowest mIoU", f"{SIDE_BY_SIDE} The mIoU is that of the image alone."),
    MEDIAN_MAPS: ("Around the median", SIDE_BY_SIDE),
    BEST_MAPS: ("Highest mIoU", SIDE_BY_SIDE),
}


class MetricRow(NamedTuple):
    """A metric beside the accuracy: name, value, interval or "", and its meaning."""

    name: str
    value: str
    interval: str
    meaning: str


def metric_rows(evaluation: Mapping[str, Any] | None) -> list[MetricRow]:
    """The metrics shown beside the accuracy."""
    values = evaluation or {}
    rows = [
        MetricRow(
            metric_name(name),
            short_number(value),
            _bounds(values, name),
            METRICS[name].meaning if name in METRICS else "",
        )
        for name, value in values.get("metrics", {}).items()
    ]
    for key in KEYS:
        if values.get(key) is None or (key == "top5" and len(values.get("classes") or ()) < TOP5):
            continue
        limits = values.get("balanced_interval") if key == "balanced_accuracy" else None
        # another task has its own loss
        term = METRICS[key]
        name, meaning = (key, "") if "metrics" in values else (term.name, term.meaning)
        rows.append(MetricRow(name, format_metric(key, values[key]), _range(limits), meaning))
    return rows + _unknown_rows(values.get("unknown"))


def _unknown_rows(values: Mapping[str, Any] | None) -> list[MetricRow]:
    """What the model answers with `predict --unknown`; [] without values."""
    if not values or values.get("reason") or values.get("answered") is None:
        return []
    level, rows = percent(values["level"], 0), []
    named = {
        "answered": (
            "answered",
            f"share of images with one label in the set, and not odder than {level} of validation",
        ),
        "accuracy_answered": ("accuracy of the answered", "share of these that are right"),
        "coverage": (
            "coverage",
            f"share of images whose set of labels holds the true one; set to {level}",
        ),
    }
    for key, (name, meaning) in named.items():
        if values.get(key) is not None:
            bounds = _range(values.get(f"{key}_interval"))
            rows.append(MetricRow(name, percent(values[key]), bounds, meaning))
    size = MetricRow("set size", f"{values['set_size']:.2f}", "", "mean number of labels in a set")
    area = "mean share of errors over all numbers of answered images; 0 is the best"
    return [*rows, size, MetricRow("area under risk-coverage", f"{values['aurc']:.4f}", "", area)]


def _bounds(values: Mapping[str, Any], name: str) -> str:
    limits = (values.get("intervals") or {}).get(name)
    return f"{limits[0]:.4g} to {limits[1]:.4g}" if limits else ""


def caveats(evaluation: Mapping[str, Any] | None) -> list[str]:
    """Caveats: selection on these images, leakage, the epoch, temperature scaling."""
    values, sentences = evaluation or {}, []
    samples = samples_of(values.get("task"))
    if values.get("used_for_choosing"):
        expect = "worse values" if "metrics" in values else "less"
        sentences.append(
            f"The best epoch was selected on these {samples}: expect {expect} on new {samples}."
        )
    if overlap := values.get("seen_in_training"):
        sentences.append(f"{overlap:,} of these {samples} were in the training set.")
    if values.get("test_uses"):
        uses = values["test_uses"]
        times = "once" if uses == 1 else f"{uses} times; choices made since then bias the result"
        sentences.append(f"The test {samples} were evaluated {times}.")
    if values.get("last"):
        last = values["last"]
        sentences.append(
            f"These are the weights of epoch {values['epoch']}, the best on validation; those of "
            f"the last epoch, {last['epoch']}, give {percent(last['accuracy'])} "
            f"({_range(last['interval'])})."
        )
    if values.get("temperature"):
        scaling = values["temperature"]
        sentences.append(
            f"A temperature of {scaling['value']:.3g}, fitted on {scaling['n']:,} validation "
            f"images, gives a calibration error of {percent(scaling['calibration_error'])}."
        )
    return sentences


def gallery(examples: Sequence[Example]) -> list[tuple[str, str, list[Example]]]:
    """(title, explanation, images) of each kind with images."""
    by_kind = {kind: [example for example in examples if example.kind == kind] for kind in TITLES}
    return [(*TITLES[kind], images) for kind, images in by_kind.items() if images]


def interval(evaluation: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """The 95 % interval of the accuracy; None without one."""
    if not evaluation or evaluation.get("accuracy") is None or not evaluation.get("n"):
        return None
    return wilson_interval(round(evaluation["accuracy"] * evaluation["n"]), evaluation["n"])


def _range(limits: Any) -> str:
    return f"{100 * limits[0]:.1f} % to {100 * limits[1]:.1f} %" if limits else ""


def label_rows(evaluation: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Metrics of each class where an image may have several labels; [] for other tasks."""
    values = evaluation or {}
    return list(values["per_class"]) if "thresholds" in values else []


LARGEST = 40  # classes of a readable matrix
WORST = 10
SHOWN = 15  # classes of lowest recall, listed instead of a larger matrix


@dataclass(frozen=True)
class ConfusionCell:
    """Number of images, and their share of the row."""

    count: int
    share: float
    right: bool


@dataclass(frozen=True)
class ConfusionRow:
    """One true class."""

    name: str
    total: int
    recall: float | None
    precision: float | None
    low: float
    high: float
    cells: list[ConfusionCell]


@dataclass(frozen=True)
class Confusion:
    """Rows are labels, columns predictions."""

    classes: list[str]
    rows: list[ConfusionRow]
    worst: list[tuple[str, str, int]]  # label, prediction, count; largest first
    readable: bool
    # of segmentation, whose counts are pixels: colour and IoU of each class
    colours: dict[str, str] = field(default_factory=dict)
    iou: dict[str, float | None] = field(default_factory=dict)

    @property
    def lowest(self) -> list[ConfusionRow]:
        """The classes with the lowest recall."""
        labelled = [row for row in self.rows if row.recall is not None]
        return sorted(labelled, key=lambda row: (row.recall or 0.0, -row.total))[:SHOWN]


def confusion(evaluation: dict[str, Any] | None) -> Confusion | None:
    """From the fields `classes` and `confusion` of an evaluation; None without them."""
    if not evaluation or not evaluation.get("classes") or not evaluation.get("confusion"):
        return None
    classes, counts = list(evaluation["classes"]), evaluation["confusion"]
    rows = [
        _row(index, name, counts[index], sum(row[index] for row in counts))
        for index, name in enumerate(classes)
    ]
    confused = sorted(
        (-counts[label][predicted], label, predicted)
        for label in range(len(classes))
        for predicted in range(len(classes))
        if label != predicted and counts[label][predicted]
    )
    worst = [(classes[label], classes[other], -n) for n, label, other in confused[:WORST]]
    maps = {"colours": evaluation.get("colours", {}), "iou": evaluation.get("iou", {})}
    return Confusion(classes, rows, worst, len(classes) <= LARGEST, **maps)


def _row(index: int, name: str, counts: list[int], predicted: int) -> ConfusionRow:
    total = sum(counts)
    cells = [
        ConfusionCell(count, count / total if total else 0.0, other == index)
        for other, count in enumerate(counts)
    ]
    recall = counts[index] / total if total else None
    precision = counts[index] / predicted if predicted else None
    return ConfusionRow(
        name, total, recall, precision, *wilson_interval(counts[index], total), cells
    )
