"""Which images to label: accuracy by number of labels, for each way of `suggest` against random.

    unfreeze embed efficientnet-lite0.pth trashnet.zip --arch timm/tf_efficientnet_lite0 --out t.npz
    python benchmarks/suggest.py --features trashnet=t.npz --json benchmarks/results/suggest.json

`--features NAME=FILE` (several) are files of `unfreeze embed` with all labels; without it, the
pixels of scikit-learn's digits. For each seed 70 % of the images are the pool and 30 % the test
set. Labels are bought in steps: 10, 20, 40, ...; at each step a way chooses from the pool as
`suggest` does, given the labels so far, and multinomial logistic regression (scikit-learn, C = 10,
features standardised by the pool, mean squared norm 1) is trained on all labels and tested. Before
two classes have labels, `uncertain` and `auto` have no model and choose typical images. Reported:
mean accuracy, and the mean difference to random with its 95 % interval (Student's t over seeds; a
seed has the same pool and test set in all ways). The random tenth that `suggest` keeps as a test
set is not counted among the labels.
"""

import argparse
import json
import platform
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy.stats import t as student
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from unfreeze.evaluation.label_selection import (
    PER_CLASS,
    Picker,
    clustering_space,
    margin_uncertainty,
    pick_typical,
    pick_uncertain,
    random_order,
)

Floats = npt.NDArray[np.float32]
Table = dict[str, dict[str, list[float]]]
WAYS = ("random", "typical", "uncertain", "auto")
COLOURS = {"random": "#7a7a7a", "typical": "#1f5fa8", "uncertain": "#c8641e", "auto": "#3b8a3e"}


def read(path: str | None) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Features float32 [N, D] and labels [N] of an embed file; None: the pixels of digits."""
    if path is None:
        digits = load_digits()
        return digits.data.astype(np.float32), digits.target
    with np.load(path) as arrays:
        known = arrays["labels"] >= 0
        return arrays["features"][known], arrays["labels"][known]


class Pool(NamedTuple):
    """Images of which labels can be bought: features, labels and clustering space."""

    features: Floats
    labels: npt.NDArray[np.int64]
    space: Floats


def trained(pool: Pool, bought: npt.NDArray[np.int64]) -> LogisticRegression:
    """Logistic regression on the labels bought."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(C=10, max_iter=300)
        return probe.fit(pool.features[bought], pool.labels[bought])


def choose(
    way: str, pool: Pool, bought: npt.NDArray[np.int64], count: int, seed: int
) -> npt.NDArray[np.int64]:
    """Positions of `count` more images."""
    images = len(pool.features)
    labelled = np.zeros(images, bool)
    labelled[bought] = True
    classes = len(np.unique(pool.labels[bought]))
    if way == "auto":
        way = "uncertain" if len(bought) >= PER_CLASS * max(classes, 2) else "typical"
    if way == "uncertain" and classes < 2:
        way = "typical"
    picker = Picker(~labelled, count, lambda position: np.arange(images) == position)
    if way == "random":
        picker.fill(random_order(images, seed=1_000 * seed + len(bought)))
    elif way == "typical":
        pick_typical(pool.space, labelled, picker, seed=seed)
    else:
        doubt = margin_uncertainty(trained(pool, bought).predict_proba(pool.features))
        pick_uncertain(pool.space, doubt, picker, seed=seed)
    return np.array(picker.picks)


def accuracies(
    features: Floats, labels: npt.NDArray[np.int64], way: str, budgets: list[int], seed: int
) -> list[float]:
    """Test accuracy after each step of buying labels."""
    order = np.random.default_rng(seed).permutation(len(features))
    split = round(0.7 * len(order))
    inside, outside = np.sort(order[:split]), order[split:]
    deviation = np.maximum(features[inside].std(axis=0), 1e-6) * np.sqrt(features.shape[1])
    scaled = (features - features[inside].mean(axis=0)) / deviation
    pool = Pool(scaled[inside], labels[inside], clustering_space(features[inside], seed=seed))
    bought, curve = np.zeros(0, np.int64), list[float]()
    for budget in budgets:
        bought = np.r_[bought, choose(way, pool, bought, budget - len(bought), seed)]
        some = pool.labels[bought]
        if len(np.unique(some)) < 2:
            curve.append(float((labels[outside] == some[0]).mean()))
            continue
        curve.append(float(trained(pool, bought).score(scaled[outside], labels[outside])))
    return curve


def compared(curves: dict[str, npt.NDArray[np.float64]]) -> Table:
    """For each way the mean accuracy and the difference to random with half its 95 % interval."""
    table = {}
    for way, values in curves.items():
        paired = values - curves["random"]
        quantile = student.ppf(0.975, len(paired) - 1)
        half = quantile * paired.std(axis=0, ddof=1) / np.sqrt(len(paired))
        table[way] = {
            "accuracy": values.mean(axis=0).round(4).tolist(),
            "difference": paired.mean(axis=0).round(4).tolist(),
            "half_interval": half.round(4).tolist(),
        }
    return table


def draw(path: str, results: dict[str, Any]) -> None:
    """One row per data set: accuracy, and the difference to random with its 95 % interval."""
    figure = Figure(figsize=(10, 3 * len(results)), dpi=110, layout="constrained")
    for row, (name, result) in zip(
        figure.subplots(len(results), 2, squeeze=False), results.items(), strict=True
    ):
        for way, curve in result["ways"].items():
            row[0].plot(result["labels"], curve["accuracy"], "o-", color=COLOURS[way], label=way)
            if way != "random":
                row[1].errorbar(
                    result["labels"], curve["difference"], curve["half_interval"], fmt="o-",
                    capsize=3, color=COLOURS[way], label=way,
                )  # fmt: skip
        row[0].set_title(name, loc="left")
        row[0].set_ylabel("test accuracy")
        row[1].set_ylabel("difference to random")
        row[1].axhline(0, color=COLOURS["random"], linewidth=1, linestyle=":")
        for axes in row:
            axes.set_xscale("log")
            axes.set_xticks(result["labels"], [str(count) for count in result["labels"]])
            axes.minorticks_off()
            axes.set_xlabel("labels")
            axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    """Measure, print a table, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--labels", type=int, nargs="*", default=[10, 20, 40, 80, 160, 320])
    parser.add_argument("--json")
    parser.add_argument("--plot")
    args = parser.parse_args()
    sources = {"digits, pixels": None} | dict(item.split("=", 1) for item in args.features)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    results, started = dict[str, Any](), time.perf_counter()
    for name, path in sources.items():
        features, labels = read(path)
        curves = {
            way: np.array([accuracies(features, labels, way, args.labels, seed) for seed in seeds])
            for way in WAYS
        }
        results[name] = {
            "images": len(features),
            "classes": len(np.unique(labels)),
            "labels": args.labels,
            "ways": compared(curves),
        }
        print(f"{name}: {len(features):,} images, labels {args.labels}")
        for way, curve in results[name]["ways"].items():
            cells = zip(curve["accuracy"], curve["difference"], curve["half_interval"], strict=True)
            print(f"  {way:10}", "  ".join(f"{a:.3f} ({d:+.3f} ± {h:.3f})" for a, d, h in cells))
    record = {
        "seeds": [*seeds],
        "per_class": PER_CLASS,
        "seconds": round(time.perf_counter() - started, 1),
        "python": platform.python_version(),
        "results": results,
    }
    if args.json:
        Path(args.json).write_text(json.dumps(record, indent=2) + "\n")
    if args.plot:
        draw(args.plot, results)


if __name__ == "__main__":
    main()
