"""Fine-tuning on few images: frozen, last stage, gradual and full, against a linear probe.

    python benchmarks/transfer.py --archive trashnet-subset.zip --weights squeezenet1_1.pth

`--archive` holds class folders. A fixed random fifth of each class is the test set; every run gets
the rest and splits off its own validation set by its seed. Initial weights are `--weights` (for
SqueezeNet 1.1) and a SwAV run on the training images without labels. Each frozen run is compared
with scikit-learn's logistic regression on the features of `embed` of the same training images.
Evaluated once on the test set, with the best checkpoint.
"""

import argparse
import json
import platform
import tempfile
import time
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import unfreeze

WAYS: dict[str, dict[str, Any]] = {
    "frozen": {"freeze": "all"},
    "last stage": {"freeze": "stage:LAST"},
    "gradual": {"freeze": "all", "unfreeze_at": "GRADUAL"},
    "full": {"freeze": "none"},
}


def unpack(archive: str, folder: Path) -> None:
    """Write `train/CLASS` and `test/CLASS`; every fifth image of a shuffled class is test."""
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(archive) as members:
        by_class = defaultdict(list)
        for name in sorted(members.namelist()):
            if name.lower().endswith((".jpg", ".jpeg", ".png")):
                by_class[name.split("/")[-2]].append(name)
        for label, names in by_class.items():
            for position, k in enumerate(draw.permutation(len(names))):
                split = "test" if position % 5 == 0 else "train"
                target = folder / split / label / Path(names[k]).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(members.read(names[k]))


def settings(way: str, model: str, epochs: int) -> dict[str, Any]:
    """The settings of a method, with the stage names of the network."""
    names = [stage["name"] for stage in unfreeze.summary(model).stages]
    options = dict(WAYS[way])
    if way == "last stage":
        options["freeze"] = f"stage:{len(names) - 2}"
    if way == "gradual":
        options["unfreeze_at"] = f"{epochs // 3}:{names[-1]},{2 * epochs // 3}:all"
    return options


def probe(model: str, data: Path, scratch: Path, run: Path) -> float:
    """Test accuracy of logistic regression on the features of a run's training images."""
    files = {}
    for split in ("train", "test"):
        out = scratch / f"{split}.npz"
        unfreeze.embed(model, str(data), str(out), split=split, batch_size=64)
        files[split] = dict(np.load(out))
    rows = [line.split(",") for line in (run / "split.csv").read_text().splitlines()[1:]]
    trained = {row[0] for row in rows if row[2] == "train"}
    in_train = np.array([path in trained for path in files["train"]["paths"]])
    scale = StandardScaler().fit(files["train"]["features"][in_train])
    classifier = LogisticRegression(max_iter=2_000, C=0.1).fit(
        scale.transform(files["train"]["features"][in_train]), files["train"]["labels"][in_train]
    )
    return float(
        classifier.score(scale.transform(files["test"]["features"]), files["test"]["labels"])
    )


def starts(weights: str | None, data: Path, folder: Path, epochs: int) -> dict[str, dict[str, Any]]:
    """Name -> arguments of `finetune` for these initial weights."""
    results: dict[str, dict[str, Any]] = {}
    if weights:
        results["squeezenet1_1"] = {"arch": "squeezenet1_1", "weights": weights}
    run = folder / "swav"
    unfreeze.pretrain(
        str(data), out=str(run), arch="unfreeze/small", image_size=64, epochs=epochs, seed=0
    )
    results["own SwAV run"] = {"weights": str(run)}
    return results


def main() -> None:
    """Run all combinations of weights, method and seed; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--swav-epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = folder / "images"
        unpack(args.archive, data)
        for start, how in starts(args.weights, data, folder, args.swav_epochs).items():
            for way in args.ways:
                for seed in args.seeds:
                    rows.append(one(start, how, way, seed, data, folder, args.epochs))
                    print(rows[-1], flush=True)
    table(rows)
    if args.json:
        machine = {"processor": platform.processor(), "torch": torch.__version__}
        Path(args.json).write_text(json.dumps({"machine": machine, "runs": rows}, indent=2) + "\n")


def one(
    start: str, how: dict[str, Any], way: str, seed: int, data: Path, folder: Path, epochs: int
) -> dict[str, Any]:
    """One run and its test accuracy; for a frozen run also that of the linear probe.

    A frozen run has four times the epochs: on cached features they cost next to nothing, and a head
    that has not converged cannot be compared with one that is solved.
    """
    epochs *= 4 if way == "frozen" else 1
    began, out = time.monotonic(), folder / f"{start}-{way}-{seed}".replace(" ", "-")
    model = how.get("arch") or how["weights"]
    run = unfreeze.finetune(
        str(data), out=str(out), epochs=epochs, seed=seed, **how, **settings(way, model, epochs)
    )
    row = {
        "start": start,
        "way": way,
        "seed": seed,
        "test": unfreeze.evaluate(str(out), str(data)).accuracy,
        "val": run.val_accuracy,
        "frozen_unchanged": run.frozen_unchanged,
        "trained": run.parameters_trainable,
        "seconds": round(time.monotonic() - began, 1),
    }
    if way == "frozen":
        row["probe"] = probe(str(out), data, folder, out)
    return row


def table(rows: list[dict[str, Any]]) -> None:
    """Print mean and standard deviation over the seeds."""
    print("| weights | method | test | probe on the same features | trainable parameters | s |")
    print("|---|---|---|---|---|---|")
    keys = dict.fromkeys((row["start"], row["way"]) for row in rows)
    for start, way in keys:
        group = [row for row in rows if (row["start"], row["way"]) == (start, way)]
        accuracies = [
            spread([row[name] for row in group if name in row]) for name in ("test", "probe")
        ]
        seconds = np.mean([row["seconds"] for row in group])
        cells = [start, way, *accuracies, f"{group[0]['trained']:,}", f"{seconds:.0f}"]
        print(f"| {' | '.join(cells)} |")


def spread(values: list[float]) -> str:
    """`mean ± sd`, or "" without values."""
    if not values:
        return ""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
