"""One self-contained HTML page about a run."""

import base64
import io
import math
from collections import Counter
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from unfreeze import __version__
from unfreeze.config.shared import data_name
from unfreeze.reports import comparison, evaluation, verdict
from unfreeze.reports.bottleneck import ThroughputSettings, bottleneck
from unfreeze.reports.charts import PlotPanel, panels
from unfreeze.reports.continued import pretrained_sentences
from unfreeze.reports.curves import DARK, LIGHT, draw
from unfreeze.reports.evaluation import confusion
from unfreeze.reports.examples import QUALITY, SMALL, Example, Pixels, encode_image
from unfreeze.reports.glossary import METRICS, format_metric
from unfreeze.reports.results_runs import format_duration
from unfreeze.reports.run_reader import RunData, image_row_png

TITLES = {
    "demo": "Demo",
    "pretrain": "Pretraining",
    "finetune": "Transfer learning",
    "compare": "Comparison of initial weights",
    "run": "Run",
}
STRIPS = 36  # prototypes on the page
PROBLEMS = 200  # rows on the page
PNG = b"\x89PNG"
WIDEST = 1600  # pixels of a row of images


def run_page(findings: RunData) -> str:
    """The HTML of the page, without references to other files."""
    return render_template("page.html", _context(findings))


def render_template(template: str, context: dict[str, Any]) -> str:
    """Render a template of this package with the shared style; values are escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": format_number, "percent": format_percent}
    package = resources.files("unfreeze.reports")
    style = Markup(package.joinpath("style.css").read_text("utf-8"))
    text = package.joinpath(template).read_text("utf-8")
    values = {"style": style, "version": __version__, **context}
    return environment.from_string(text).render(**values) + "\n"


def _continued(findings: RunData) -> list[str]:
    """What a finished run gained over the weights of `--init`; [] for other runs."""
    continued = (findings.result or {}).get("continued")
    if not continued:
        return []
    prototypes = findings.settings.get("nmb_prototypes")
    return pretrained_sentences(findings.metrics, prototypes, continued, interval=False)


def _context(findings: RunData) -> dict[str, Any]:
    compared = comparison.comparison_view(findings.comparison)
    return {
        "title": TITLES[findings.kind],
        "name": findings.folder.resolve().name,
        "verdict": verdict.headline(
            findings, compared.verdict if compared else _continued(findings)
        ),
        "hero": verdict.headline_number(findings),
        "unfinished": verdict.resume_hint(findings),
        "warnings": findings.warnings,
        "notes": [*(compared.notes if compared else ()), *evaluation.caveats(findings.evaluation)],
        "figures": header_facts(findings),
        "bottleneck": bottleneck(findings.metrics, ThroughputSettings.of(findings.facts)),
        "demo": _demo(findings.demo),
        "charts": [_chart(panel) for panel in panels(findings)],
        "comparison": compared,
        "scores": evaluation.metric_rows(findings.evaluation),
        "gallery": _gallery(findings),
        "confusion": confusion(findings.evaluation),
        "label_rows": evaluation.label_rows(findings.evaluation),
        "prototypes": _prototypes(findings),
        "prototype_count": findings.settings.get("nmb_prototypes"),
        "feature_evaluation": _feature_evaluation(findings.metrics),
        "views": [] if findings.views is None else [_row(v) for v in findings.views[:8]],
        "fine": findings.views is not None and findings.views.shape[2] >= 64,
        "problems": findings.problems[:PROBLEMS],
        "problem_count": len(findings.problems),
        "problem_kinds": Counter(row.get("reason", "") for row in findings.problems).most_common(),
        "reasons": [(k, findings.settings.get(k), why) for k, why in findings.reasons.items()],
        "settings": {
            k: data_name(v) if k == "data" else v
            for k, v in findings.settings.items()
            if k not in findings.reasons
        },
        "facts": findings.facts,
    }


def header_facts(findings: RunData) -> list[tuple[str, str]]:
    """(name, value) of the facts at the top of the page."""
    train = [r for r in findings.metrics if r.get("split") == "train"]
    facts, rows = findings.facts, list[tuple[str, str]]()
    samples = verdict.samples_of((findings.result or {}).get("task"))
    arch = (findings.comparison or findings.settings).get("arch")
    if arch:
        rows.append(("network", str(arch)))
    if findings.settings.get("teacher"):
        rows.append(("teacher", str(findings.settings["teacher"])))
    if findings.settings.get("data"):
        rows.append(("data", data_name(findings.settings["data"])))
    if facts.get("images"):
        rows.append((f"training {samples}", format_number(facts["images"])))
    if train and facts.get("steps_per_epoch"):
        epochs = train[-1]["step"] / facts["steps_per_epoch"]
        rows.append(("epochs", f"{epochs:.3g} of {format_number(findings.settings.get('epochs'))}"))
    if train:
        rates = sorted(r["images_per_second"] for r in train if r.get("images_per_second"))
        rows += (
            [(f"{samples} per second", format_number(round(rates[len(rates) // 2])))]
            if rates
            else []
        )
    seconds = (findings.demo or findings.result or {}).get("seconds")
    if seconds:
        rows.append(("time", format_duration(seconds)))
    knn = (findings.result or {}).get("knn")
    if isinstance(knn, dict) and knn.get("teacher"):
        rows.append(("k-NN with the teacher's features", verdict.percent(knn["teacher"])))
    return rows + _repeated(findings.repeated)


def _feature_evaluation(metrics: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Rows of the feature evaluation: first and last values, each with its meaning."""
    evaluations = [record for record in metrics if record.get("split") == "figures"]
    if not evaluations:
        return []
    last = evaluations[-1]
    started = evaluations[0].get("step") == 0 and last is not evaluations[0]
    first = evaluations[0] if started else {}
    return [
        {
            "name": term.name,
            "first": format_metric(key, first.get(key)),
            "last": format_metric(key, last[key]),
            "meaning": term.meaning,
        }
        for key, term in METRICS.items()
        if key in last and key != "loss"
    ]


def _repeated(results: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Cross-validation accuracy or metric over folds and seeds, in the last epoch."""
    if results is None:
        return []
    folds = f"{results['folds']} folds, " if results["folds"] else ""
    seeds = f"{len(results['seeds'])} seeds, " if len(results["seeds"]) > 1 else ""
    metric = results.get("metric")
    form = (lambda value: f"{value:.3f}") if metric else format_percent
    low, high = (form(bound) for bound in results["interval"])
    name = f"cross-validation ({folds}{seeds}{format_number(results['n'])} images, 95 %)"
    value = f"{metric} {form(results['value'])}" if metric else form(results["accuracy"])
    return [(name, f"{value} [{low}, {high}]")]


def _demo(demo: dict[str, Any] | None) -> dict[str, Any] | None:
    """Numbers of labels and rows of the demo's table; the best mean of a column is marked."""
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
    """(number of labels, result) pairs, fewest labels first."""
    return sorted(row.items(), key=lambda item: int(item[0]))


def _chart(panel: PlotPanel) -> dict[str, str]:
    return {
        "title": panel.title,
        "note": panel.note,
        "light": _data_uri(draw([panel], LIGHT)),
        "dark": _data_uri(draw([panel], DARK)),
    }


def _gallery(findings: RunData) -> list[tuple[str, str, list[dict[str, Any]]]]:
    return [
        (title, explained, [_example(example) for example in images])
        for title, explained, images in evaluation.gallery(findings.examples)
    ]


def _example(example: Example) -> dict[str, Any]:
    return {
        **{k: v for k, v in vars(example).items() if k not in ("image", "map", "nearest")},
        "map": _data_uri(example.map) if example.map else "",
        "nearest": [
            {
                "path": near.path,
                "label": near.label,
                "coarse": near.image.startswith(PNG),
                "uri": _data_uri(near.image),
            }
            for near in example.nearest
        ],
        "file": example.path.rpartition("/")[2],
        "coarse": example.image.startswith(PNG),
        "uri": _data_uri(example.image),
    }


def _prototypes(findings: RunData) -> list[dict[str, Any]]:
    prototypes = findings.prototypes
    if prototypes is None:
        return []
    return [
        {
            "number": int(prototypes.number[p]),
            "share": float(prototypes.share[p]),
            "images": [image_data_uri(image) for image in prototypes.images[p]],
            "coarse": prototypes.images.shape[2] <= SMALL,
        }
        for p in range(min(STRIPS, len(prototypes.number)))
    ]


def _row(pixels: Pixels) -> str:
    """A row of images as one data URI."""
    png = image_row_png(pixels)
    with Image.open(io.BytesIO(png)) as row:
        if row.height <= SMALL:
            return _data_uri(png)
        row.thumbnail((WIDEST, WIDEST))
        canvas = Image.new("RGB", row.size, "white")
        canvas.paste(row, mask=row.getchannel("A"))
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=QUALITY)
    return _data_uri(buffer.getvalue())


def image_data_uri(pixels: Pixels) -> str:
    """An image as a data URI: lossless if it is small, else JPEG."""
    return _data_uri(encode_image(pixels))


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(PNG) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def format_number(value: Any) -> str:
    """Format a value: thousands separators, four digits, lists with spaces."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return " ".join(format_number(item) for item in value)
    return str(value)


def format_percent(value: float | None) -> str:
    """`0.9561` -> `95.6 %`."""
    return "-" if value is None else f"{100 * value:.1f} %"
