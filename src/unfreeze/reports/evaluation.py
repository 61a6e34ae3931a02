"""The evaluation on the page: metrics with their meaning, caveats, and example images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unfreeze.reports.answer import percent
from unfreeze.reports.examples import RIGHT, UNSURE, WRONG, Example
from unfreeze.reports.glossary import FIGURES, figure
from unfreeze.reports.interval import wilson
from unfreeze.reports.results_models import TOP5

KEYS = ("balanced_accuracy", "macro_f1", "top5", "loss", "calibration_error")
TITLES = {
    WRONG: ("Wrong", "The most certain mistakes. mistakes.csv lists all of them."),
    UNSURE: ("Unsure", "The images with the lowest confidence."),
    RIGHT: ("Right", "Classified correctly with the highest confidence, class by class."),
}


class Score(NamedTuple):
    """A metric beside the accuracy: name, value, interval or "", and its meaning."""

    name: str
    value: str
    interval: str
    meaning: str


def figures(evaluation: Mapping[str, Any] | None) -> list[Score]:
    """The metrics shown beside the accuracy."""
    values = evaluation or {}
    rows = []
    for key in KEYS:
        if values.get(key) is None or (key == "top5" and len(values.get("classes") or ()) < TOP5):
            continue
        limits = values.get("balanced_interval") if key == "balanced_accuracy" else None
        term = FIGURES[key]
        rows.append(Score(term.name, figure(key, values[key]), _range(limits), term.meaning))
    return rows


def notes(evaluation: Mapping[str, Any] | None) -> list[str]:
    """Caveats: selection on these images, leakage, the epoch, temperature scaling."""
    values, sentences = evaluation or {}, []
    if values.get("used_for_choosing"):
        sentences.append("The best epoch was selected on these images: expect less on new images.")
    if overlap := values.get("seen_in_training"):
        sentences.append(f"{overlap:,} of these images were in the training set.")
    if values.get("test_uses"):
        uses = values["test_uses"]
        times = "once" if uses == 1 else f"{uses} times; choices made since then bias the accuracy"
        sentences.append(f"The test images were evaluated {times}.")
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
    return wilson(round(evaluation["accuracy"] * evaluation["n"]), evaluation["n"])


def _range(limits: Any) -> str:
    return f"{100 * limits[0]:.1f} % to {100 * limits[1]:.1f} %" if limits else ""
