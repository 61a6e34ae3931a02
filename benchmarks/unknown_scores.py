"""Out-of-distribution scores on features: left-out classes and other data, score by score.

    unfreeze embed WEIGHTS DATA --out A.npz     # for each data set
    python benchmarks/unknown_scores.py --features A=A.npz B=B.npz --json unknown-scores.json

For each seed a third of the classes is left out; the score gets --per-class images of each other
class. AUROC between other images of these classes and images of the left-out classes, or of each
other data set. Half of the known images that are compared set the units of the joint scores.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.evaluation.out_of_distribution import (
    ENERGY,
    KNN,
    MAHALANOBIS,
    auroc,
    joined,
    measures_of,
    neighbours,
    units_of,
)

SCORES = ((KNN,), (ENERGY,), (MAHALANOBIS,), (KNN, ENERGY), (KNN, MAHALANOBIS))
MOST = 500  # images of each group that are compared


def measured(
    data: dict[str, tuple[np.ndarray, np.ndarray]], name: str, per_class: int, seed: int
) -> dict[str, dict[str, float]]:
    """AUROC by group of strange images and score."""
    rng = np.random.default_rng(seed)
    features, labels = data[name]
    order = rng.permutation(len(labels))
    features, labels = features[order], labels[order]
    classes = np.unique(labels)
    left_out = rng.permutation(classes)[: max(1, len(classes) // 3)]
    kept = [c for c in classes if c not in left_out]
    train = np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in kept])
    rest = np.setdiff1d(np.arange(len(labels)), train)
    strange = np.isin(labels[rest], left_out)
    groups = {"known": features[rest[~strange]][:MOST], "left out": features[rest[strange]][:MOST]}
    groups |= {other: data[other][0][:MOST] for other in data if other != name}
    measures = {
        group: measures_of(features[train], labels[train], some, neighbours(labels[train]))
        for group, some in groups.items()
    }
    half = len(groups["known"]) // 2
    known = {measure: values[half:] for measure, values in measures["known"].items()}
    units = units_of(
        {m: v[:half] for m, v in measures["known"].items()}, (KNN, ENERGY, MAHALANOBIS)
    )
    return {
        group: {
            "+".join(names): auroc(
                joined(known, {n: units[n] for n in names}),
                joined(values, {n: units[n] for n in names}),
            )
            for names in SCORES
        }
        for group, values in measures.items()
        if group != "known"
    }


def main() -> None:
    """Measure every data set and print the means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--features", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--per-class", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json")
    s = parser.parse_args()
    data = {}
    for pair in s.features:
        name, _, file = pair.partition("=")
        with np.load(file) as arrays:
            order = np.random.default_rng(0).permutation(len(arrays["labels"]))
            data[name] = arrays["features"][order], arrays["labels"][order].astype(np.int64)
    results: dict[str, Any] = {}
    for name in data:
        for per_class in s.per_class:
            rows = [measured(data, name, per_class, seed) for seed in range(s.seeds)]
            table = {
                group: {
                    score: [float(np.mean(v)), float(np.std(v, ddof=1))]
                    for score in rows[0][group]
                    for v in [[row[group][score] for row in rows]]
                }
                for group in rows[0]
            }
            results[f"{name}, {per_class} a class"] = table
            for group, scores in table.items():
                shown = "  ".join(f"{score} {mean:.3f}" for score, (mean, _) in scores.items())
                print(f"{name} {per_class} {group}: {shown}", flush=True)
    if s.json:
        Path(s.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
