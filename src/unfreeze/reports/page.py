"""One self-contained HTML page about a run."""

import base64
import math
from collections import Counter
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from unfreeze import __version__
from unfreeze.reports import comparison, evaluation
from unfreeze.reports.confusion import confusion
from unfreeze.reports.curves import DARK, LIGHT, draw
from unfreeze.reports.findings import Findings
from unfreeze.reports.gallery import strip
from unfreeze.reports.panels import Panel, panels
from unfreeze.runtime.bottleneck import Circumstances, bottleneck
from unfreeze.settings.shared import spoken

TITLES = {
    "demo": "From handwritten digits to a classifier",
    "pretrain": "Pretraining with SwAV",
    "finetune": "Transfer",
    "compare": "Did pretraining pay?",
    "run": "Run",
}
STRIPS = 36  # prototypes on the page
PROBLEMS = 200  # rows on the page


def page(findings: Findings) -> str:
    """The page's text; nothing in it refers to anything outside it."""
    return rendered("page.html", _context(findings))


def rendered(template: str, context: dict[str, Any]) -> str:
    """A template of this room with the pages' style, everything in it escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "percent": percent}
    ours = resources.files("unfreeze.reports")
    style = Markup(ours.joinpath("style.css").read_text("utf-8"))
    text = ours.joinpath(template).read_text("utf-8")
    given = {"style": style, "version": __version__, **context}
    return environment.from_string(text).render(**given) + "\n"


def _context(findings: Findings) -> dict[str, Any]:
    return {
        "title": TITLES[findings.kind],
        "name": findings.folder.resolve().name,
        "warnings": findings.warnings,
        "figures": figures(findings),
        "bottleneck": bottleneck(findings.metrics, Circumstances.of(findings.facts)),
        "demo": _demo(findings.demo),
        "charts": [_chart(panel) for panel in panels(findings)],
        "comparison": comparison.shown(findings.comparison),
        "evaluation": findings.evaluation,
        "interval": evaluation.interval(findings.evaluation),
        "scores": evaluation.figures(findings.evaluation),
        "notes": evaluation.notes(findings.evaluation),
        "mistakes": _mistakes(findings),
        "confusion": confusion(findings.evaluation),
        "prototypes": _prototypes(findings),
        "views": [] if findings.views is None else [_uri(strip(v)) for v in findings.views[:8]],
        "fine": findings.views is not None and findings.views.shape[2] >= 64,
        "problems": findings.problems[:PROBLEMS],
        "problem_count": len(findings.problems),
        "problem_kinds": Counter(row.get("reason", "") for row in findings.problems).most_common(),
        "reasons": [(k, findings.settings.get(k), why) for k, why in findings.reasons.items()],
        "settings": {
            k: spoken(v) if k == "data" else v
            for k, v in findings.settings.items()
            if k not in findings.reasons
        },
        "facts": findings.facts,
    }


def figures(findings: Findings) -> list[tuple[str, str]]:
    """(name, value) of the few numbers that stand at the top."""
    train = [r for r in findings.metrics if r.get("split") == "train"]
    held = [r for r in findings.metrics if r.get("split") == "val" and "accuracy" in r]
    found: list[tuple[str, str]] = []
    arch = (findings.comparison or findings.settings).get("arch")
    if arch:
        found.append(("network", str(arch)))
    if findings.settings.get("data"):
        found.append(("pictures", spoken(findings.settings["data"])))
    if train:
        found.append(("steps", number(train[-1].get("step"))))
        found.append(("last loss", number(train[-1].get("loss"))))
        rates = sorted(r["images_per_second"] for r in train if r.get("images_per_second"))
        found += [("images a second", number(round(rates[len(rates) // 2])))] if rates else []
    found += _knn(findings.metrics)
    if held:
        best = max(held, key=lambda record: record["accuracy"])
        found.append(("best accuracy on val", percent(best["accuracy"])))
    found += _repeated(findings.repeated)
    if findings.demo is not None:
        found.append(("seconds in all", number(round(findings.demo["seconds"]))))
    return found


def _repeated(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What folds and seeds say of the last epoch."""
    if found is None:
        return []
    how = f"{found['folds']} folds, " if found["folds"] else ""
    seeds = f"{len(found['seeds'])} seeds, " if len(found["seeds"]) > 1 else ""
    low, high = (percent(bound) for bound in found["interval"])
    name = f"held out in turn ({how}{seeds}{number(found['n'])} pictures, 95 %)"
    return [(name, f"{percent(found['accuracy'])} [{low}, {high}]")]


def _knn(metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """k-NN at the untrained start and at the last look, and of which pictures."""
    seen = [record for record in metrics if record.get("knn_accuracy") is not None]
    if not seen:
        return []
    first, last = seen[0], seen[-1]
    of = f"{last.get('split')}, {number(last.get('total'))} pictures"
    began = f"{percent(first['knn_accuracy'])} -> " if first.get("step") == 0 else ""
    return [(f"k-NN ({of})", began + percent(last["knn_accuracy"]))]


def _demo(demo: dict[str, Any] | None) -> dict[str, Any] | None:
    """Counts and rows of the demo's table; the best mean of a column is marked."""
    if demo is None:
        return None
    results = demo["results"]
    counts = sorted({count for row in results.values() for count in row}, key=int)
    best = {c: max(row[c][0] for row in results.values() if c in row) for c in counts}
    rows = [
        (
            method,
            [{"mean": m, "std": s, "best": m == best[c]} for c, (m, s) in sorted_cells(row)],
        )
        for method, row in results.items()
    ]
    return {"counts": counts, "rows": rows}


def sorted_cells(row: dict[str, Any]) -> list[tuple[str, Any]]:
    """Number of labels and result, fewest labels first."""
    return sorted(row.items(), key=lambda item: int(item[0]))


def _chart(panel: Panel) -> dict[str, str]:
    return {
        "title": panel.title,
        "light": _uri(draw([panel], LIGHT)),
        "dark": _uri(draw([panel], DARK)),
    }


def _mistakes(findings: Findings) -> list[dict[str, Any]]:
    return [
        {**vars(one), "picture": None if one.picture is None else _uri(one.picture)}
        for one in evaluation.mistakes(findings)
    ]


def _prototypes(findings: Findings) -> list[dict[str, Any]]:
    held = findings.prototypes
    if held is None:
        return []
    return [
        {
            "number": int(held.number[p]),
            "share": float(held.share[p]),
            "strip": _uri(strip(held.pictures[p])),
            "fine": held.pictures.shape[2] >= 64,
        }
        for p in range(min(STRIPS, len(held.number)))
    ]


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def number(value: Any) -> str:
    """A value as people read it: thousands apart, four digits, lists with spaces."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return " ".join(number(item) for item in value)
    return str(value)


def percent(value: float | None) -> str:
    """`0.9561` -> `95.6 %`."""
    return "-" if value is None else f"{100 * value:.1f} %"
