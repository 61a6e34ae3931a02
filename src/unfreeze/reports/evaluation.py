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
    """A figure beside the accuracy: name, value, interval or "", and what it means."""

    name: str
    value: str
    interval: str
    meaning: str


def figures(evaluation: Mapping[str, Any] | None) -> list[Score]:
    """What stands beside the accuracy."""
    found = evaluation or {}
    rows = []
    for key in KEYS:
        if found.get(key) is None or (key == "top5" and len(found.get("classes") or ()) < TOP5):
            continue
        limits = found.get("balanced_interval") if key == "balanced_accuracy" else None
        term = FIGURES[key]
        rows.append(Score(term.name, figure(key, found[key]), _range(limits), term.meaning))
    return rows


def notes(evaluation: Mapping[str, Any] | None) -> list[str]:
    """Sentences: what makes the figure too good, which epoch it is, a temperature."""
    found, said = evaluation or {}, []
    if found.get("used_for_choosing"):
        said.append("The best epoch was selected on these images: expect less on new images.")
    if seen := found.get("seen_in_training"):
        said.append(f"{seen:,} of these images were in the training set.")
    if found.get("test_uses"):
        uses = found["test_uses"]
        often = "once" if uses == 1 else f"{uses} times; choices made since then bias the accuracy"
        said.append(f"The test images were evaluated {often}.")
    if found.get("last"):
        last = found["last"]
        said.append(
            f"These are the weights of epoch {found['epoch']}, the best on validation; those of "
            f"the last epoch, {last['epoch']}, give {percent(last['accuracy'])} "
            f"({_range(last['interval'])})."
        )
    if found.get("temperature"):
        warm = found["temperature"]
        said.append(
            f"A temperature of {warm['value']:.3g}, fitted on {warm['n']:,} validation images, "
            f"gives a calibration error of {percent(warm['calibration_error'])}."
        )
    return said


def gallery(examples: Sequence[Example]) -> list[tuple[str, str, list[Example]]]:
    """(title, explanation, images) of each kind that there is."""
    by_kind = {kind: [one for one in examples if one.kind == kind] for kind in TITLES}
    return [(*TITLES[kind], found) for kind, found in by_kind.items() if found]


def interval(evaluation: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Of the accuracy, 95 %."""
    if not evaluation or evaluation.get("accuracy") is None or not evaluation.get("n"):
        return None
    return wilson(round(evaluation["accuracy"] * evaluation["n"]), evaluation["n"])


def _range(limits: Any) -> str:
    return f"{100 * limits[0]:.1f} % to {100 * limits[1]:.1f} %" if limits else ""
