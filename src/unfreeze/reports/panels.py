"""Which curves a run has: its records sorted into panels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unfreeze.reports.findings import Findings


@dataclass(frozen=True)
class Line:
    """One curve; `spread` draws error bars, `faint` steps back, `exact` is never smoothed."""

    name: str
    x: list[float]
    y: list[float]
    faint: bool = False
    exact: bool = False
    spread: list[float] | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `level` is a dashed line with its name."""

    title: str
    lines: list[Line]
    x_name: str = "step"
    level: tuple[float, str] | None = None
    share: bool = False  # the y axis is a share from 0 to 1
    x_share: bool = False  # the x axis too


def panels(findings: Findings) -> list[Panel]:
    """The panels that have something to show, in reading order."""
    made = (
        _demo(findings.demo),
        _loss(findings),
        _accuracy(findings.metrics),
        _prototypes(findings),
        _figures(findings.metrics),
        _learning_rate(findings.metrics),
        _calibration(findings.evaluation),
    )
    return [panel for panel in made if panel is not None and panel.lines]


def _demo(demo: Mapping[str, Any] | None) -> Panel | None:
    if demo is None:
        return None
    lines = []
    for method, row in demo["results"].items():
        counts = sorted(row, key=int)
        means, spreads = zip(*(row[count] for count in counts), strict=True)
        lines.append(Line(method, [float(c) for c in counts], list(means), spread=list(spreads)))
    return Panel("Accuracy by labels", lines, x_name="labels a class", share=True)


def _loss(findings: Findings) -> Panel:
    K = findings.settings.get("nmb_prototypes")
    level = None
    if isinstance(K, int) and K > 1:
        level = (math.log(K), f"ln {K}: nothing learned")
    # the rates of --find-lr are all tried at step 0, up to where the loss explodes
    trained = [record for record in findings.metrics if record.get("split") != "find-lr"]
    return Panel("Loss", _lines(trained, "loss"), level=level)


def _accuracy(metrics: list[dict[str, Any]]) -> Panel:
    lines = _lines(metrics, "accuracy")
    for name in sorted({key for record in metrics for key in record if key.startswith("knn")}):
        lines += [
            Line("k-NN" if line.name == "val" else f"k-NN, {line.name}", line.x, line.y)
            for line in _lines(metrics, name)
        ]
    of = f" ({lines[0].name})" if len(lines) == 1 else ""
    return Panel(f"Accuracy{of}", lines, share=True)


def _prototypes(findings: Findings) -> Panel:
    K = findings.settings.get("nmb_prototypes")
    level = (float(K), f"all {K}") if isinstance(K, int) else None
    lines = _lines(findings.metrics, "prototypes_used")
    return Panel("Prototypes in use", lines, level=level)


def _figures(metrics: list[dict[str, Any]]) -> Panel:
    names = {
        "information": "information",
        "agreement": "agreement of two views",
        "code_entropy": "entropy of a code",
    }
    looked = [record for record in metrics if record.get("split") == "figures"]
    lines = [replace(line, name=names[key]) for key in names for line in _lines(looked, key)]
    return Panel("Without labels", lines, share=True)


def _learning_rate(metrics: list[dict[str, Any]]) -> Panel:
    found = [line for line in _lines(metrics, "learning_rate") if line.name == "train"]
    return Panel("Learning rate", [replace(line, exact=True) for line in found])


def _calibration(evaluation: Mapping[str, Any] | None) -> Panel | None:
    bins = (evaluation or {}).get("calibration")
    if not bins or not evaluation:
        return None
    sure, right = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    lines = [
        Line("as sure as right", [0.0, 1.0], [0.0, 1.0], faint=True, exact=True),
        Line(str(evaluation.get("split", "model")), sure, right, exact=True),
    ]
    title = "Right, by the probability given"
    return Panel(title, lines, x_name="probability", share=True, x_share=True)


def _lines(metrics: list[dict[str, Any]], key: str) -> list[Line]:
    """One line a split, training stepping back where there is another."""
    found = [record for record in metrics if _number(record.get(key)) and "step" in record]
    names = list(dict.fromkeys(str(record.get("split", "train")) for record in found))
    lines = []
    for name in names:
        rows = [record for record in found if str(record.get("split", "train")) == name]
        x, y = [float(r["step"]) for r in rows], [float(r[key]) for r in rows]
        lines.append(Line(name, x, y, faint=name == "train" and len(names) > 1))
    return lines


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
