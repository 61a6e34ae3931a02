"""Ways of fine-tuning on few images: frozen, last stage, gradual and full, beside a linear probe.

    python benchmarks/transfer.py --archive trashnet-subset.zip --weights squeezenet1_1.pth

`--archive` holds class folders. A fifth of each class is set aside as test by a fixed draw; the
rest is what every run gets, and each cuts its own validation split from it by its seed. Starts are
the weights given (for SqueezeNet 1.1) and a SwAV run of our own on the training images without
labels. Beside each frozen run: scikit-learn's logistic regression on `embed`'s features of the same
training images. Judged once, on test, at the selected epoch.
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
    """`train/CLASS` and `test/CLASS`: every fifth image of a shuffled class is test's."""
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(archive) as members:
        by_class = defaultdict(list)
        for name in sorted(members.namelist()):
            if name.lower().endswith((".jpg", ".jpeg", ".png")):
                by_class[name.split("/")[-2]].append(name)
        for label, names in by_class.items():
            for place, k in enumerate(draw.permutation(len(names))):
                split = "test" if place % 5 == 0 else "train"
                target = folder / split / label / Path(names[k]).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(members.read(names[k]))


def settings(way: str, model: str, epochs: int) -> dict[str, Any]:
    """The flags of a way, with the network's own stages."""
    names = [stage["name"] for stage in unfreeze.summary(model).stages]
    given = dict(WAYS[way])
    if way == "last stage":
        given["freeze"] = f"stage:{len(names) - 2}"
    if way == "gradual":
        given["unfreeze_at"] = f"{epochs // 3}:{names[-1]},{2 * epochs // 3}:all"
    return given


def probe(model: str, data: Path, scratch: Path, run: Path) -> float:
    """Logistic regression on the features of the images a run trained on; accuracy on test."""
    files = {}
    for split in ("train", "test"):
        out = scratch / f"{split}.npz"
        unfreeze.embed(model, str(data), str(out), split=split, batch_size=64)
        files[split] = dict(np.load(out))
    rows = [line.split(",") for line in (run / "split.csv").read_text().splitlines()[1:]]
    trained = {row[0] for row in rows if row[2] == "train"}
    mine = np.array([path in trained for path in files["train"]["paths"]])
    scale = StandardScaler().fit(files["train"]["features"][mine])
    found = LogisticRegression(max_iter=2_000, C=0.1).fit(
        scale.transform(files["train"]["features"][mine]), files["train"]["labels"][mine]
    )
    return float(found.score(scale.transform(files["test"]["features"]), files["test"]["labels"]))


def starts(weights: str | None, data: Path, folder: Path, epochs: int) -> dict[str, dict[str, Any]]:
    """Name -> how `finetune` begins there."""
    found: dict[str, dict[str, Any]] = {}
    if weights:
        found["squeezenet1_1"] = {"arch": "squeezenet1_1", "weights": weights}
    own = folder / "swav"
    unfreeze.pretrain(
        str(data), out=str(own), arch="unfreeze/small", image_size=64, epochs=epochs, seed=0
    )
    found["own SwAV run"] = {"weights": str(own)}
    return found


def main() -> None:
    """Every start by every way by every seed; a table, and JSON where asked."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--archive", required=True)
    ask.add_argument("--weights")
    ask.add_argument("--epochs", type=int, default=15)
    ask.add_argument("--swav-epochs", type=int, default=60)
    ask.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ask.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    ask.add_argument("--threads", type=int)
    ask.add_argument("--json")
    given = ask.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = folder / "images"
        unpack(given.archive, data)
        for start, how in starts(given.weights, data, folder, given.swav_epochs).items():
            for way in given.ways:
                for seed in given.seeds:
                    rows.append(one(start, how, way, seed, data, folder, given.epochs))
                    print(rows[-1], flush=True)
    table(rows)
    if given.json:
        machine = {"processor": platform.processor(), "torch": torch.__version__}
        Path(given.json).write_text(json.dumps({"machine": machine, "runs": rows}, indent=2) + "\n")


def one(
    start: str, how: dict[str, Any], way: str, seed: int, data: Path, folder: Path, epochs: int
) -> dict[str, Any]:
    """One run and its test accuracy; beside a frozen one the linear probe's.

    A frozen run has four times the epochs: on features that are kept they cost next to nothing, and
    a head that is not trained to its end cannot be compared with one that is solved for.
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
    """Mean and deviation over the seeds."""
    print("| start | way | test | probe on the same features | parameters trained | s |")
    print("|---|---|---|---|---|---|")
    keys = dict.fromkeys((row["start"], row["way"]) for row in rows)
    for start, way in keys:
        mine = [row for row in rows if (row["start"], row["way"]) == (start, way)]
        told = [spread([row[name] for row in mine if name in row]) for name in ("test", "probe")]
        seconds = np.mean([row["seconds"] for row in mine])
        print(
            f"| {start} | {way} | {told[0]} | {told[1]} | {mine[0]['trained']:,} | {seconds:.0f} |"
        )


def spread(values: list[float]) -> str:
    """`mean ± sd`, or nothing."""
    if not values:
        return ""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
