"""Losses of several labels for an image, on collages of handwritten digits.

    python benchmarks/multilabel.py --json multilabel.json

A collage has 2x2 fields of 8x8 pixels; one to three hold a digit, and its labels are the digits it
shows. Low digits are frequent and high ones rare (1 / (1 + digit)). Collages of train and test are
made of different digits, the built-in split of scikit-learn's. Each loss is trained from scratch
with each learning rate and seed; the rate with the best validation mAP is evaluated on test.
Intervals: 95 %, over seeds and test images; differences are paired by both.
"""

import argparse
import csv
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import unfreeze
from unfreeze.config.commands import EvaluateSettings
from unfreeze.data.index.index import TRAIN, build_index
from unfreeze.data.sources.open import open_source
from unfreeze.reports.intervals import metric_over_seeds
from unfreeze.runs.task_evaluation import evaluate_task_with_predictions, resampled_metrics
from unfreeze.runtime.console import QuietConsole
from unfreeze.tasks.multilabel.task import MultilabelTask

WAYS = {
    "bce": {"loss": "bce"},
    "bce, sqrt weights": {"loss": "bce", "class_weights": "sqrt"},
    "asymmetric": {"loss": "asymmetric"},
}


def write_collages(folder: Path, counts: dict[str, int]) -> Path:
    """The CSV of new collages; `counts`: images of the splits train and test."""
    source = open_source("digits")
    index, draw, rows = build_index(source), np.random.default_rng(0), []
    often = 1 / (1 + np.arange(10))
    for split, count in counts.items():
        inside = (index.splits == TRAIN) == (split == "train")
        for number in range(count):
            digits = draw.choice(10, draw.integers(1, 4), p=often / often.sum())
            page = np.zeros((16, 16, 3), np.uint8)
            for field, digit in zip(draw.permutation(4), digits, strict=False):
                position = draw.choice(np.flatnonzero(inside & (index.labels == digit)))
                tile = np.asarray(source.read(int(index.rows[position])))
                row, column = 8 * (field // 2), 8 * (field % 2)
                page[row : row + 8, column : column + 8] = tile
            name = f"{split}-{number:04}.png"
            Image.fromarray(page).save(folder / name)
            rows.append((name, ";".join(sorted({str(digit) for digit in digits})), split))
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    return folder / "labels.csv"


def best_run(data: Path, way: str, seed: int, s: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The run of a way and seed with the learning rate that is best on validation."""
    runs = []
    for rate in s.rates:
        options: Any = WAYS[way]
        result = unfreeze.finetune(
            data,
            task="multilabel",
            arch="unfreeze/tiny",
            weights="none",
            augment="none",
            epochs=s.epochs,
            batch_size=32,
            optimizer="sgd",
            lr=rate,
            seed=seed,
            device="cpu",
            select="metric",
            out=str(out / f"{way}-{seed}-{rate}"),
            overwrite=True,
            progress=False,
            **options,
        )
        runs.append({"run": result.run, "lr": rate, "val_map": result.val_map})
        print(way, seed, rate, f"{result.val_map:.3f}", flush=True)
    return max(runs, key=lambda run: run["val_map"])


def evaluated(data: Path, run: str) -> tuple[Any, np.ndarray]:
    """(evaluation on test, mAP in resamples of the images)."""
    settings = EvaluateSettings(run=run, data=(str(data),), device="cpu")
    evaluation, kept = evaluate_task_with_predictions(settings, QuietConsole())
    state = json.loads((Path(run) / "model/model.json").read_text())["task_state"]
    task = MultilabelTask()
    task.load_state_dict(state)
    return evaluation, resampled_metrics(task, kept.outputs, kept.targets)["map"]


def summary(values: list[float], resampled: list[np.ndarray]) -> dict[str, Any]:
    """Mean over seeds with its interval."""
    estimate = metric_over_seeds(values, np.mean(resampled, axis=0))
    return {"mean": estimate.mean, "interval": [estimate.low, estimate.high], "values": values}


def measured(s: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The metrics of every way, and the differences from the first."""
    data = write_collages(folder, {"train": s.train, "test": s.test})
    found: dict[str, Any] = {}
    maps: dict[str, tuple[list[float], list[np.ndarray]]] = {}
    for way in WAYS:
        began, results = time.perf_counter(), []
        for seed in range(s.seeds):
            best = best_run(data, way, seed, s, folder)
            evaluation, resampled = evaluated(data, best["run"])
            results.append((best, evaluation, resampled))
        values = [evaluation.metrics["map"] for _, evaluation, _ in results]
        maps[way] = values, [resampled for *_, resampled in results]
        found[way] = {
            "map": summary(*maps[way]),
            "f1_micro": [evaluation.metrics["f1_micro"] for _, evaluation, _ in results],
            "f1_macro": [evaluation.metrics["f1_macro"] for _, evaluation, _ in results],
            "rarest_ap": [evaluation.per_class[-1]["ap"] for _, evaluation, _ in results],
            "rates": [best["lr"] for best, *_ in results],
            "seconds": time.perf_counter() - began,
        }
        print(way, json.dumps(found[way]["map"]), flush=True)
    first = maps["bce"]
    for way, (values, resampled) in maps.items():
        if way != "bce":
            found[way]["over_bce"] = summary(
                [a - b for a, b in zip(values, first[0], strict=True)],
                [a - b for a, b in zip(resampled, first[1], strict=True)],
            )
    return found


def main() -> None:
    """Measure, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.015, 0.05, 0.15])
    parser.add_argument("--json", type=Path)
    s = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(s, Path(folder))
    about = {"torch": torch.__version__, "machine": platform.processor(), **vars(s), "json": None}
    text = json.dumps({"about": about, "ways": result}, indent=2)
    if s.json:
        s.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
