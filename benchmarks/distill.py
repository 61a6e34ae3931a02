"""Distillation beside SwAV in the same time, and beside the teacher.

    python benchmarks/distill.py --cifar cifar10.zip --trashnet trashnet-subset.zip --threads 1
        --teacher efficientnet-lite0-imagenet.pth --json benchmarks/results/distill.json

Arms: the teacher's own features; the student untrained; the student after `pretrain --method
distill` with the auto recipe (`--epochs` overrides); the student after SwAV and after SimCLR, by
the auto recipe with as many epochs as take the same seconds. Seconds of distillation include the
teacher's pass over the images. CIFAR-10: the first `--images` / 10 names of each class of train
without their labels, evaluated on the first `--test` / 10 of test. TrashNet: a random third of each
class is the test set; its photographs repeat objects, so all of its accuracies are optimistic.
k-NN: k 20, all labels of the training images; linear: logistic regression on 100 labels of each
class (TrashNet: 80).

Every finished run is written to `--json` at once; a restart continues after the last one.
"""

import argparse
import json
import os
import random
import tempfile
import time
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import unfreeze
from cifar import machine
from unfreeze.data.index.splits import subset
from unfreeze.evaluation.knn import knn_accuracy
from unfreeze.evaluation.logistic_regression import linear_accuracy

ARMS = ("teacher", "untrained", "swav", "simclr", "distill")
PROBE = (2, 4)  # epochs of the two runs that SwAV's speed is measured with
LABELS = {"cifar": 100, "trashnet": 80}  # of each class, for the linear probe


def members_by_class(archive: zipfile.ZipFile, depth: int) -> dict[str, list[str]]:
    """Names of the images of an archive by their folder, in order; `depth`: parts of the folder."""
    names = defaultdict(list)
    for name in sorted(archive.namelist()):
        if name.endswith(".jpg"):
            names["/".join(name.split("/")[1 : 1 + depth])].append(name)
    return names


def unpack(name: str, args: argparse.Namespace, folder: Path) -> None:
    """Write the images of a data set to `folder`/{train,test}/class."""
    path = args.cifar if name == "cifar" else args.trashnet
    with zipfile.ZipFile(path) as archive:
        chosen = []
        if name == "cifar":
            for place, names in members_by_class(archive, 2).items():
                split = place.split("/")[0]
                most = (args.images if split == "train" else args.test) // 10
                chosen += [(place, member) for member in names[:most]]
        else:
            for label, names in members_by_class(archive, 1).items():
                random.Random(0).shuffle(names)
                third = len(names) // 3
                chosen += [
                    (f"{'test' if k < third else 'train'}/{label}", member)
                    for k, member in enumerate(names)
                ]
        for place, member in chosen:
            target = folder / place / Path(member).name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))


def accuracies(model: str, data: Path, name: str, scratch: Path, arch: str | None = None) -> dict:
    """k-NN and linear accuracy of a model's features on the test images, and seconds."""
    files, seconds = {}, {}
    for split in ("train", "test"):
        began = time.perf_counter()
        out = scratch / f"{split}.npz"
        options: dict[str, Any] = {"split": split, "arch": arch, "batch_size": 64}
        unfreeze.embed(model, str(data), str(out), **options)
        seconds[split] = time.perf_counter() - began
        files[split] = dict(np.load(out))
    train, test = files["train"], files["test"]
    labels, truth = (part["labels"].astype(np.int64) for part in (train, test))
    few = subset(train["labels"], np.arange(len(labels)), per_class=LABELS[name], seed=0)
    tensors = [torch.from_numpy(a) for a in (train["features"], labels, test["features"], truth)]
    return {
        "knn": knn_accuracy(*tensors),
        "linear": linear_accuracy(
            train["features"][few], labels[few], test["features"], truth, C=0.01
        ),
        "train": len(labels),
        "test": len(truth),
        "seconds_train_features": seconds["train"],
    }


class Benchmark:
    """Runs of one data set; `rows`: those that are finished, by (data, arm, seed)."""

    def __init__(self, name: str, args: argparse.Namespace, report: dict, folder: Path) -> None:
        self.name, self.args, self.report = name, args, report
        self.data, self.scratch = folder / name, folder / f"{name}-scratch"
        self.scratch.mkdir()
        unpack(name, args, self.data)

    def row(self, arm: str, seed: int | None = None) -> dict | None:
        """A finished run."""
        rows = self.report["rows"]
        key = (self.name, arm, seed)
        return next((r for r in rows if (r["data"], r["arm"], r["seed"]) == key), None)

    def keep(self, arm: str, seed: int | None, values: dict) -> dict:
        """Add a finished run and write the file."""
        row = {"data": self.name, "arm": arm, "seed": seed, **values}
        self.report["rows"].append(row)
        temporary = Path(f"{self.args.json}.part")
        temporary.write_text(json.dumps(self.report, indent=1) + "\n")
        temporary.replace(self.args.json)
        print(json.dumps(row), flush=True)
        return row

    def pretrain(self, seed: int, **settings: Any) -> tuple[str, dict]:
        """A pretraining run: its folder, and its seconds."""
        out = str(self.scratch / "run")
        began = time.perf_counter()
        common = {"arch": self.args.arch, "device": self.args.device, "watch_every": 0}
        common["on_collapse"] = "ignore"  # a result as well
        result = unfreeze.pretrain(
            str(self.data), out=out, overwrite=True, seed=seed, **common, **settings
        )
        return out, {
            "seconds": time.perf_counter() - began,
            "epochs": result.epochs,
            "steps": result.steps,
            "loss": result.loss,
        }

    def epoch_of_swav(self) -> dict:
        """Seconds before the first step of a SwAV run, and of each epoch."""
        found = self.row("swav-speed")
        if found is not None:
            return found
        self.pretrain(0, epochs=1)  # what is done once: file checks
        few, many = (self.pretrain(0, epochs=epochs)[1]["seconds"] for epochs in PROBE)
        each = (many - few) / (PROBE[1] - PROBE[0])
        return self.keep("swav-speed", None, {"epoch": each, "start": few - PROBE[0] * each})

    def run(self) -> None:
        """All arms and seeds that are not finished."""
        if self.row("teacher") is None:
            values = accuracies(self.args.teacher, self.data, self.name, self.scratch)
            self.keep("teacher", None, values)
        if self.row("teacher-pass") is None:
            with tempfile.TemporaryDirectory() as empty:
                usual = os.environ.get("UNFREEZE_CACHE")
                os.environ["UNFREEZE_CACHE"] = empty
                cold = self.distill(0, epochs=0)[1]["seconds"]
                warm = self.distill(0, epochs=0)[1]["seconds"]
                os.environ.pop("UNFREEZE_CACHE")
                if usual is not None:
                    os.environ["UNFREEZE_CACHE"] = usual
            self.keep("teacher-pass", None, {"seconds": cold - warm})
        for seed in self.args.seeds:
            self.run_seed(seed)

    def distill(self, seed: int, **settings: Any) -> tuple[str, dict]:
        """A student; in seconds of a run that finds the teacher's features in the cache."""
        return self.pretrain(seed, method="distill", teacher=self.args.teacher, **settings)

    def run_seed(self, seed: int) -> None:
        """The three students of a seed."""
        if self.row("untrained", seed) is None:
            out, about = self.pretrain(seed, epochs=0)
            self.keep("untrained", seed, about | self.accuracies(out))
        distilled = self.row("distill", seed)
        if distilled is None:
            self.distill(seed, epochs=0)  # fills the cache
            settings = {} if self.args.epochs is None else {"epochs": self.args.epochs}
            out, about = self.distill(seed, **settings)
            about["seconds"] += (self.row("teacher-pass") or {})["seconds"]
            distilled = self.keep("distill", seed, about | self.accuracies(out))
        for method in ("swav", "simclr"):
            if self.row(method, seed) is None:
                speed = self.epoch_of_swav()  # SimCLR has the same crops, batch and network
                # all seeds do the same work: the first one's seconds count, by a clock of the wall
                first = self.row("distill", self.args.seeds[0]) or distilled
                epochs = max(1, round((first["seconds"] - speed["start"]) / speed["epoch"]))
                out, about = self.pretrain(seed, method=method, epochs=epochs)
                self.keep(method, seed, about | self.accuracies(out))

    def accuracies(self, model: str) -> dict:
        """Those of a run."""
        return accuracies(model, self.data, self.name, self.scratch)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval over seeds (Student's t); 0 for one seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, 0.0
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def table(rows: list[dict]) -> str:
    """Markdown: each data set and arm with mean and 95 % interval over seeds."""
    lines = ["| data | features | k-NN | linear | epochs | seconds |", "|---|---|---|---|---|---|"]
    for data in dict.fromkeys(row["data"] for row in rows):
        for arm in ARMS:
            these = [r for r in rows if (r["data"], r["arm"]) == (data, arm)]
            if not these:
                continue
            cells = []
            for name in ("knn", "linear"):
                mean, half = interval([row[name] for row in these])
                cells.append(f"{mean:.3f}" + (f" ± {half:.3f}" if len(these) > 1 else ""))
            epochs = sorted({row["epochs"] for row in these if "epochs" in row})
            seconds = [row["seconds"] for row in these if row.get("epochs")]
            cells += ["-".join(map(str, epochs)) or "-"]
            cells += [f"{np.mean(seconds):,.0f}" if seconds else "-"]
            lines.append(f"| {data} | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", help="cifar10/{train,test}/<class>/*.jpg in a zip")
    parser.add_argument("--trashnet", help="trashnet/<class>/*.jpg in a zip")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--arch", default="unfreeze/small")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, help="of distillation; default: the auto recipe's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = Path(args.json)
    places = ("cifar", "trashnet", "teacher", "json", "seeds")
    settings = {k: v for k, v in vars(args).items() if k not in places}
    report = {"settings": settings, "machine": machine(), "rows": []}
    if path.exists():
        before = json.loads(path.read_text())
        if before["settings"] != settings:
            raise SystemExit(f"{path} has runs with other settings: {before['settings']}")
        report = before
    for name in ("cifar", "trashnet"):
        if getattr(args, name):
            with tempfile.TemporaryDirectory() as folder:
                Benchmark(name, args, report, Path(folder)).run()
    print(table(report["rows"]))


if __name__ == "__main__":
    main()
