"""How many flipped labels does `unfreeze audit` find? Beside three rankings of the literature.

    python benchmarks/audit.py DATA ... --arch timm/tf_efficientnet_lite0 --weights lite0.pth

In each data set `--share` of the labels are changed to another class, chosen uniformly, with a seed
for each repetition; the folds have the same seed. Features are computed once per data set. All
rankings get the same out-of-fold probabilities:

- `audit`: what the command lists (copies under several labels, then by self-confidence as many as
  confident learning estimates to be wrong);
- `self_confidence`: all images by the probability of their label;
- `class`: confident learning's "prune by class", by self-confidence;
- `noise_rate`: confident learning's "prune by noise rate", by normalised margin (arXiv 1911.00068).

`precision` and `recall` are of the first k images of a ranking, where k is the number of flipped
labels; a list may be shorter. `listed` and `found`: length of the whole list, and the share of the
flipped labels in it. `listed_clean`: what `audit` lists with the labels as they are, which may hold
errors of their own; every suspect that is not flipped counts as a mistake.
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import unfreeze
from unfreeze.config.labelling import AuditSettings
from unfreeze.data.sources.open import open_source
from unfreeze.evaluation.confident_learning import (
    calibrated_joint,
    confident_joint,
    self_confidence,
)
from unfreeze.runs.labelling.audit import (
    ImageFeatures,
    LabelAudit,
    audit_labels,
    backbone_for,
    compute_features,
    labelled_by_path,
)
from unfreeze.runtime.console import QuietConsole


def normalized_margin(probabilities: Any, labels: Any) -> Any:
    """Probability of the label minus the largest of the others, [N]."""
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return self_confidence(probabilities, labels) - others.max(axis=1)


def prune_by_noise_rate(probabilities: Any, labels: Any) -> Any:
    """Positions by the paper's section 3.2: for each pair i, j the n Q_ij largest p_j - p_i."""
    noise = calibrated_joint(confident_joint(probabilities, labels), labels)
    chosen = np.zeros(len(labels), np.bool_)
    for given in range(len(noise)):
        members = np.flatnonzero(labels == given)
        margins = probabilities[members] - probabilities[members, given][:, None]
        for true in range(len(noise)):
            if true != given and (count := round(float(noise[given, true]))):
                chosen[members[np.argsort(-margins[:, true], kind="stable")[:count]]] = True
    positions = np.flatnonzero(chosen)
    order = np.argsort(normalized_margin(probabilities, labels)[positions], kind="stable")
    return positions[order]


def prune_by_class(probabilities: Any, labels: Any) -> Any:
    """Positions by the same section: of each class i the n Q_ij (j != i) least self-confident."""
    noise = calibrated_joint(confident_joint(probabilities, labels), labels)
    confidence = self_confidence(probabilities, labels)
    chosen = np.zeros(len(labels), np.bool_)
    for given, row in enumerate(noise):
        members = np.flatnonzero(labels == given)
        worst = members[np.argsort(confidence[members], kind="stable")]
        chosen[worst[: round(float(row.sum() - row[given]))]] = True
    positions = np.flatnonzero(chosen)
    return positions[np.argsort(confidence[positions], kind="stable")]


def flipped(labels: Any, classes: int, share: float, seed: int) -> tuple[Any, Any]:
    """(labels with `share` of them changed to another class, mask of those)."""
    rng = np.random.default_rng(seed)
    changed = rng.permutation(len(labels))[: round(share * len(labels))]
    result, mask = labels.copy(), np.zeros(len(labels), np.bool_)
    result[changed] = (labels[changed] + rng.integers(1, classes, len(changed))) % classes
    mask[changed] = True
    return result, mask


def scores(order: Any, wrong: Any) -> dict[str, float]:
    """Precision and recall of the first k of a ranking, and of the whole list."""
    first, count = np.asarray(order)[: wrong.sum()], int(wrong.sum())
    hits = int(wrong[first].sum())
    return {
        "precision": hits / max(1, len(first)),
        "recall": hits / count,
        "listed": len(order),
        "found": int(wrong[order].sum()) / count,
    }


def rankings(audited: LabelAudit, labels: Any) -> dict[str, Any]:
    """Positions in order of suspicion, by ranking."""
    probabilities = audited.probabilities
    return {
        "audit": [one.position for one in audited.suspects],
        "self_confidence": np.argsort(self_confidence(probabilities, labels), kind="stable"),
        "class": prune_by_class(probabilities, labels),
        "noise_rate": prune_by_noise_rate(probabilities, labels),
    }


def measure(data: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of a data set."""
    began, console = time.perf_counter(), QuietConsole()
    s = AuditSettings(
        data=(data,), arch=args.arch, weights=args.weights, image_size=args.image_size
    )
    index = labelled_by_path(s, open_source(s.data, data_root=s.data_root, console=console))
    if args.per_class:
        first = [np.flatnonzero(index.labels == c)[: args.per_class] for c in set(index.labels)]
        index = index.take(np.sort(np.concatenate(first)))
    computed = compute_features(s, index, backbone_for(s, index, console), console)
    index, seconds = computed.index, time.perf_counter() - began
    truth, classes = index.labels.astype(np.int64), len(index.classes)
    clean = audit_labels(s, computed)
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        labels, wrong = flipped(truth, classes, args.share, seed)
        changed = replace(index, labels=labels.astype(np.int32))
        features = ImageFeatures(changed, computed.features, computed.alike, 0)
        audited = audit_labels(replace(s, seed=seed), features)
        predicted = audited.probabilities.argmax(axis=1)
        found = {name: scores(o, wrong) for name, o in rankings(audited, labels).items()}
        copies = [one for one in audited.suspects if one.reason == "duplicate"]
        right = sum(bool(wrong[one.position]) for one in copies)
        rows.append(
            {"seed": seed, "flipped": int(wrong.sum()), "copies": len(copies), "right": right}
            | {"accuracy": float((predicted == truth).mean())}
            | found
        )
    names = list(rankings(clean, truth))
    mean = {
        name: {
            key: [statistics.mean(r[name][key] for r in rows), spread([r[name][key] for r in rows])]
            for key in rows[0][name]
        }
        for name in names
    }
    return {
        "data": Path(data).name,
        "images": len(index),
        "classes": classes,
        "seconds_features": round(seconds, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "listed_clean": len(clean.suspects),
        "accuracy_clean": clean.accuracy,
        "seeds": rows,
        "mean": mean,
    }


def spread(values: list[float]) -> float:
    """The standard deviation; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    """Measure all data sets; print a table and write `--json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+", help="data sets with classes")
    parser.add_argument("--arch", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--per-class", type=int, help="use the first N images of each class")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    results = []
    for data in args.data:
        results.append(measure(data, args))
        one = results[-1]
        print(f"{one['data']}: {one['images']:,} images, {one['listed_clean']} listed unflipped")
        for name, values in one["mean"].items():
            text = ", ".join(f"{key} {m:.3f} ± {sd:.3f}" for key, (m, sd) in values.items())
            print(f"  {name:<16} {text}", flush=True)
    if args.json:
        about = {
            "share": args.share,
            "image_size": args.image_size,
            "per_class": args.per_class,
            "arch": args.arch,
            "weights": Path(args.weights).name,
            "unfreeze": unfreeze.__version__,
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        }
        Path(args.json).write_text(json.dumps({"about": about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
