"""Results on stdout: one JSON document, or a few lines for people."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from unfreeze.reports.interval import wilson
from unfreeze.runtime.console import worded
from unfreeze.runtime.tables import csv_text
from unfreeze.text import clean_all

_BESIDE = (
    ("macro-F1", "macro_f1"),
    ("top-5", "top5"),
    ("loss", "loss"),
    ("calibration error", "calibration_error"),
)
_CLASSES = 40  # that a table on the terminal lists


def plain(value: Any) -> Any:
    """`value` as JSON knows it: dataclasses as objects, arrays as lists, non-finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {clean_all(str(key)): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # a NumPy array or scalar, or a tensor
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, str | PurePath):
        return clean_all(str(value))  # names of files need not be UTF-8
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(result: Any) -> str:
    """One JSON document."""
    return json.dumps(plain(result), ensure_ascii=False, allow_nan=False)


def as_text(verb: str, result: Any) -> str:
    """The result for people; empty where there is nothing to say."""
    if verb in ("summary", "inspect", "scan"):
        return str(result)  # tables of their own
    shown = plain(result)
    if isinstance(shown, dict) and {"settings", "reasons"} <= set(shown):
        return ""  # a plan: it has been told while it was made
    return _SHAPES.get(verb, _fields)(shown)


def _fields(result: Any) -> str:
    """`name  value`, one a line; what is long stays in the files and in the JSON."""
    if not isinstance(result, dict):
        return as_json(result) if result else ""
    shown = {name.replace("_", " "): _short(value) for name, value in result.items()}
    width = max((len(name) for name in shown), default=0)
    return "\n".join(f"{name:{width}}  {text}" for name, text in shown.items() if text)


def _finetuned(result: Any) -> str:
    """The fields, the accuracy with its split, size, interval and what the split was used for."""
    shown = {k: v for k, v in result.items() if k not in ("val_images", "val_interval")}
    if shown.get("val_accuracy") is not None:
        said = _interval(result, "val_accuracy", "val_interval")
        where = f"on val, {result['val_images']:,} images"
        if result["best_epoch"] is not None:
            where += ", used for choosing the epoch"
        shown["val_accuracy"] = f"{said} {where}"
    return _fields(shown)


def _pretrained(result: Any) -> str:
    """The fields; k-NN with its split, size and interval."""
    shown, knn = dict(result), result.get("knn")
    if knn:
        low_high = _range(wilson(knn["correct"], knn["total"]))
        shown["knn"] = (
            f"accuracy {knn['accuracy']:.3f} (95 %: {low_high}) on {knn['split']}, "
            f"{knn['total']:,} images"
        )
    return _fields(shown)


def _short(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, dict)):
        items = (
            [f"{name} {_short(item)}" for name, item in value.items() if item != {}]
            if isinstance(value, dict)
            else value
        )
        flat = [str(item) for item in items if not isinstance(item, (list, dict))]
        return ", ".join(flat) if 0 < len(flat) <= 12 else f"{len(value)}" if value else ""
    return str(value)


def _predictions(result: Any) -> str:
    """CSV: path, label, probability."""
    if not isinstance(result, list):
        return _fields(result)
    rows = [(row["path"], row["label"], f"{row['probability']:.4f}") for row in result]
    return csv_text([("path", "label", "probability"), *rows]).rstrip("\n")


def _evaluation(result: Any) -> str:
    """Every figure with its split, size and interval; what makes it doubtful is said."""
    n, where = result["n"], result["split"]
    lines = [f"accuracy {_interval(result, 'accuracy', 'interval')} on {where}, {n:,} images"]
    if result.get("balanced_accuracy") is not None:
        lines.append(f"balanced {_interval(result, 'balanced_accuracy', 'balanced_interval')}")
    there = [f"{name} {result[key]:.3f}" for name, key in _BESIDE if result.get(key) is not None]
    lines += [", ".join(there)] if there else []
    lines += _epochs(result) + _doubts(result)
    return "\n".join([*lines, *_each_class(result)])


def _interval(result: Any, name: str, interval: str) -> str:
    return f"{result[name]:.3f} (95 %: {_range(result[interval])})"


def _epochs(result: Any) -> list[str]:
    """Which weights these are, what the last ones give, what a temperature brings."""
    lines, last, warm = [], result.get("last"), result.get("temperature")
    if last:
        lines.append(f"these are the weights of epoch {result['epoch']}, selected on validation;")
        lines.append(
            f"those of the last, {last['epoch']}: {_interval(last, 'accuracy', 'interval')}"
        )
    if warm:
        kept = "kept with the model" if warm["kept"] else "not kept"
        lines.append(
            f"temperature {warm['value']:.3g}, fitted on {warm['n']:,} validation images ({kept}): "
            f"loss {warm['loss']:.3f}, calibration error {warm['calibration_error']:.3f}"
        )
        if warm["bounded"]:
            lines.append("the validation images set it no limit: it says little")
    return lines


def _doubts(result: Any) -> list[str]:
    lines = []
    if result.get("test_uses"):
        uses = result["test_uses"]
        lines.append(f"test images read {'once' if uses == 1 else f'{uses} times'} with this run")
        if uses > 1:
            lines.append("choices made after the first time make this figure too good")
    if result.get("used_for_choosing"):
        lines.append("this split was used for choosing: expect less on new pictures")
    if result.get("seen_in_training"):
        seen = worded(result["seen_in_training"], "of these images was", "of these images were")
        lines.append(f"{seen} seen in training")
    return lines


def _each_class(result: Any) -> list[str]:
    classes, confusion = result.get("classes"), result.get("confusion")
    if not classes or not confusion or len(classes) > 40:
        return []
    rows = [("class", "right", "of", "recall", "precision", "most often taken for")]
    for place, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        wrong = [0 if other == place else count for other, count in enumerate(row)]
        worst = max(range(len(row)), key=wrong.__getitem__) if any(wrong) else None
        taken = "" if worst is None else f"{classes[worst]} ({wrong[worst]})"
        said = sum(other[place] for other in confusion)
        shares = [f"{row[place] / all:.3f}" if all else "" for all in (sum(row), said)]
        rows.append((name, str(row[place]), str(sum(row)), *shares, taken))
    return ["", *table(rows)]


def _shown(result: Any) -> str:
    """Classes with their counts, what to think of, and where the page is."""
    splits = list(result["splits"])
    rows = [("class", *("pictures" if split == "all" else split for split in splits))]
    for name, row in list(result["counts"].items())[:_CLASSES]:
        rows.append((name, *(f"{row[split]:,}" for split in splits)))
    lines = table(rows) if len(rows) > 1 else []
    if (more := len(result["counts"]) - _CLASSES) > 0:
        lines.append(f"and {more:,} more")
    left = sum(one["left_out"] for one in result["problems"])
    said = f"{result['pictures']:,} pictures, {left:,} left out"
    return "\n".join([*lines, "", *result["notes"], said, result["out"]]).lstrip("\n")


def _comparison(result: Any) -> str:
    """Each start with its interval, what is between them, and the verdict."""
    rows = [("start", "accuracy", "95 %", "each seed")]
    for start in result["starts"]:
        each = " ".join(f"{value:.3f}" for value in start["accuracies"])
        rows.append((start["name"], f"{start['accuracy']:.3f}", _range(start["interval"]), each))
    where = f"on {result['split']}, {result['n']:,} images"
    if result["split"] == "val" and any(run["best_epoch"] is not None for run in result["runs"]):
        where += ", used for choosing the epoch: expect less on new pictures"
    return "\n".join(["", *table(rows), where, "", result["verdict"], result["report"]])


def _range(limits: Any) -> str:
    return f"{limits[0]:.3f} to {limits[1]:.3f}"


def _demo(result: Any) -> str:
    """Accuracy by method and number of labels, mean and deviation over the seeds."""
    results = result["results"]
    counts = list(next(iter(results.values()), {}))
    rows = [("labels a class", *counts)]
    for method, row in results.items():
        rows.append((method, *(f"{mean:.3f} ± {std:.3f}" for mean, std in row.values())))
    drawn = [
        f"{name:11} {result[name]}" for name in ("curves", "prototypes", "report") if result[name]
    ]
    return "\n".join(["", *table(rows), "", f"{result['seconds']:.0f} s", *drawn])


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned: the first to the left, numbers to the right, a rule under the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = [column > 0 and _number(rows[1:], column) for column in range(len(widths))]
    lines = [
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _number(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(row[column][:1].isdigit() or not row[column] for row in rows)


_SHAPES = {
    "pretrain": _pretrained,
    "swav": _pretrained,
    "finetune": _finetuned,
    "predict": _predictions,
    "evaluate": _evaluation,
    "compare": _comparison,
    "demo": _demo,
    "show": _shown,
}
