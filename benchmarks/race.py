"""Accuracy against seconds: unfreeze, lightly's examples and supervised training, side by side.

    pip install lightly    # tested with 1.6.0; a copy on PYTHONPATH works too
    export OMP_NUM_THREADS=1
    python benchmarks/race.py --archive cifar10.zip --json race.json --plot race.png

All arms train the same network on the same image files. Features are evaluated on the test images:
k-NN (k 20, cosine, all training labels) and logistic regression on `--per-class` labels a class,
at the last epoch of a run; evaluation does not count. Everything else does: reading and checking
files, decoding, augmentation, writing the run.

`ours`              `unfreeze.pretrain --method auto`, one run for each number in `--epochs`.
`ours swav`         the same with `--method swav`.
`swav as before`    the same without what is derived for small images since then: crops of the
                    image's size, batches of 256, a random first layer.
`lightly swav`      lightly's SwAV example: Adam 0.001, batch 128, 512 prototypes, 2 + 6 crops.
`lightly fastsiam`  lightly's FastSiam example: SGD 0.06, batch 512, four views.
`supervised`        `unfreeze.finetune --weights none` with all labels: an upper line.

lightly's examples have a constant rate, so a single run is evaluated after each of `--peer-epochs`;
crop sizes are `--size` and in proportion. Their data loader runs in the training process, as ours
(`--workers 0`), so with one thread the seconds of the processor compare arms on a machine that does
other work too; both clocks are written. `--archive` holds `.../{train,test}/<class>/*.jpg`, or
`.../<class>/*.jpg`, of which the last sixth of each class (by name) is the test set. Each finished
run is written to `--json` at once and skipped the next time.
"""

import argparse
import json
import random
import resource
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import lightly
import numpy as np
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.transforms import FastSiamTransform, SwaVTransform
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader

import unfreeze
from beside_lightly import InMemory, commit, example
from cifar import machine
from drawing import COLOURS
from unfreeze.checkpoints.model_file import ModelCard, save_model
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.splits import subset
from unfreeze.evaluation.knn import knn_accuracy
from unfreeze.evaluation.logistic_regression import linear_accuracy
from unfreeze.models.build import build
from unfreeze.models.head import remove_head

ARMS = ("ours", "ours swav", "swav as before", "lightly swav", "lightly fastsiam", "supervised")
BEFORE = {"batch_size": 256, "stem_init": "random"}
TEST_SHARE = 6  # one image of so many is a test image where the archive has no split


def unpack(archive: str, images: int, folder: Path) -> None:
    """Extract `images` of train, the first of each class, and all of test (or the last sixth)."""
    with zipfile.ZipFile(archive) as members:
        by_class = defaultdict(list)
        for name in sorted(members.namelist()):
            if name.lower().endswith((".jpg", ".jpeg", ".png")):
                *_, split, label, _ = ("", "", *Path(name).parts)
                by_class[split if split in ("train", "test") else "", label].append(name)
        for (split, label), names in by_class.items():
            wanted = max(1, images // len({label for _, label in by_class}))
            test = len(names) // TEST_SHARE
            parts = {
                "train": {"train": names[:wanted]},
                "test": {"test": names},
                "": {"train": names[: len(names) - test][:wanted], "test": names[-test:]},
            }
            for part, chosen in parts[split].items():
                for name in chosen:
                    target = folder / part / label / Path(name).name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(members.read(name))


def clocks() -> tuple[float, float]:
    """(wall seconds, processor seconds of this process and of those it has waited for)."""
    own, others = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.monotonic(), own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


@dataclass
class Stopwatch:
    """Both clocks since the start; what happens in `pause` does not count."""

    started: tuple[float, float] = field(default_factory=clocks)
    paused: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def read(self) -> dict[str, float]:
        """Seconds so far."""
        passed = [now - then for now, then in zip(clocks(), self.started, strict=True)]
        wall, cpu = (a - b for a, b in zip(passed, self.paused, strict=True))
        return {"wall": round(wall, 1), "cpu": round(cpu, 1)}

    def pause(self, work: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The result of `work`, whose time does not count."""
        before = clocks()
        result = work()
        for i, (now, then) in enumerate(zip(clocks(), before, strict=True)):
            self.paused[i] += now - then
        return result


@dataclass
class Race:
    """The data and the evaluation that all arms share."""

    data: Path
    scratch: Path
    args: argparse.Namespace

    def evaluate(self, model: Path) -> dict[str, float]:
        """k-NN and linear accuracy of a model folder."""
        files = {}
        for split in ("train", "test"):
            out = self.scratch / f"{split}.npz"
            unfreeze.embed(str(model), str(self.data), str(out), split=split, batch_size=200)
            files[split] = dict(np.load(out))
        train, test = files["train"], files["test"]
        labels, truth = train["labels"].astype(np.int64), test["labels"].astype(np.int64)
        few = subset(train["labels"], np.arange(len(labels)), per_class=self.args.per_class, seed=0)
        parts = [torch.from_numpy(a) for a in (train["features"], labels, test["features"], truth)]
        linear = linear_accuracy(
            train["features"][few], labels[few], test["features"], truth, C=0.01
        )
        return {"knn": round(knn_accuracy(*parts), 4), "linear": round(linear, 4)}

    def of_state(self, backbone: nn.Module) -> dict[str, float]:
        """The same of a network in memory."""
        card = ModelCard("backbone", self.args.arch, preprocess=self.preprocess.as_dict())
        save_model(self.scratch / "at" / "model", backbone.state_dict(), card)
        return self.evaluate(self.scratch / "at")

    @property
    def preprocess(self) -> Preprocess:
        """Evaluation at the size of training, as unfreeze does."""
        size = self.args.size
        return Preprocess(size, size)

    def ours(self, arm: str, seed: int) -> Iterator[dict]:
        """One run per number of epochs, each with its whole schedule."""
        for epochs in self.args.epochs:
            watch = Stopwatch()
            out = self.scratch / f"{arm.replace(' ', '-')}-{seed}-{epochs}"
            common = {"arch": self.args.arch, "epochs": epochs, "seed": seed, "out": str(out)}
            common |= {"device": self.args.device, "workers": self.args.workers, "overwrite": True}
            if self.args.size > 64:  # smaller images are taken as they are
                common["image_size"] = self.args.size
            if arm == "supervised":
                unfreeze.finetune(str(self.data), weights="none", **common)
            else:
                method = "auto" if arm == "ours" else "swav"
                if arm == "swav as before":
                    common |= BEFORE | {"size_crops": (self.args.size,)}
                unfreeze.pretrain(str(self.data), method=method, **common)
            point = {"epochs": epochs, **watch.read(), **self.evaluate(out)}
            if arm == "supervised":
                point["accuracy"] = unfreeze.evaluate(str(out), str(self.data)).accuracy
            yield point

    def lightly(self, arm: str, seed: int) -> Iterator[dict]:
        """One run at a constant rate, evaluated after some epochs."""
        torch.manual_seed(seed)
        np.random.seed(seed)  # lightly's blur draws from numpy
        random.seed(seed)
        watch = Stopwatch()
        backbone = build(self.args.arch)
        width = remove_head(backbone)
        make = lightly_swav if arm == "lightly swav" else lightly_fastsiam
        batch, transform, step = make(backbone, width, self.args.size)
        loader = DataLoader(
            InMemory(self.data / "train", transform), batch_size=batch, shuffle=True, drop_last=True
        )
        for epoch in range(1, max(self.args.peer_epochs) + 1):
            for views in loader:
                step(views)
            if epoch in self.args.peer_epochs:
                at = watch.read()
                yield {"epochs": epoch, **at, **watch.pause(lambda: self.of_state(backbone))}


Peer = tuple[int, object, Callable[[list[Tensor]], None]]  # batch size, transform, one step


def lightly_swav(backbone: nn.Module, width: int, size: int) -> Peer:
    """The SwAV example with crops of `size` pixels and in proportion."""
    small = max(8, round(size * 96 / 224 / 8) * 8) if size > 32 else size // 2
    setup = example(backbone, width, 6)
    transform = SwaVTransform(crop_sizes=(size, small))

    def step(views: list[Tensor]) -> None:
        setup.model.prototypes.normalize()
        scores = [setup.model(view, 0, "fp32") for view in views]
        loss = setup.criterion(scores[:2], scores[2:])
        loss.backward()
        setup.optimizer.step()
        setup.optimizer.zero_grad()

    return setup.batch_size, transform, step


def lightly_fastsiam(backbone: nn.Module, width: int, size: int) -> Peer:
    """The FastSiam example: each of four views predicts the mean of the others."""
    projection = SimSiamProjectionHead(width, width, 128)
    prediction = SimSiamPredictionHead(128, 64, 128)
    model = nn.ModuleList([backbone, projection, prediction])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    criterion = NegativeCosineSimilarity()

    def step(views: list[Tensor]) -> None:
        features = [projection(backbone(view).flatten(start_dim=1)) for view in views]
        predictions = [prediction(z) for z in features]
        features = [z.detach() for z in features]
        loss = torch.zeros(())
        for i, p in enumerate(predictions):
            others = torch.stack([z for j, z in enumerate(features) if j != i])
            loss = loss + criterion(p, others.mean(dim=0)) / len(views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return 512, FastSiamTransform(input_size=size), step


def plot(path: str, runs: list[dict], clock: str) -> None:
    """k-NN and linear accuracy against seconds, a line per arm: the mean of its seeds."""
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("knn", "linear"), strict=True):
        for arm, colour in zip(ARMS, COLOURS, strict=False):
            points = defaultdict(list)
            for run in (r for r in runs if r["arm"] == arm):
                for point in run["points"]:
                    points[point["epochs"]].append((point[clock], point[metric]))
                    axes.plot(point[clock], point[metric], ".", color=colour, alpha=0.5)
            if points:
                means = [np.mean(points[e], axis=0) for e in sorted(points)]
                axes.plot(*zip(*means, strict=True), "-", color=colour, label=arm)
        axes.set_xscale("log")
        axes.set_xlabel("seconds, evaluation excluded")
        axes.set_ylabel({"knn": "k-NN accuracy", "linear": "linear probe accuracy"}[metric])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def table(runs: list[dict], clock: str) -> list[str]:
    """Markdown rows: mean and spread over seeds, for each arm and number of epochs."""
    rows = ["| arm | epochs | seeds | seconds | k-NN | linear |", "|---|---|---|---|---|---|"]
    groups = defaultdict(list)
    for run in runs:
        for point in run["points"]:
            groups[run["arm"], point["epochs"]].append(point)
    for (arm, epochs), points in sorted(groups.items(), key=lambda g: (ARMS.index(g[0][0]), g[0])):
        cells = [f"{np.mean([p[clock] for p in points]):.0f}"]
        for metric in ("knn", "linear"):
            values = [p[metric] for p in points]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        rows.append(f"| {arm} | {epochs} | {len(points)} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Run what is not in the JSON file yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32, help="pixels of the large crops")
    parser.add_argument("--arch", default="unfreeze/small")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 6, 12, 25])
    parser.add_argument("--peer-epochs", type=int, nargs="+", default=[1, 2, 4, 8, 12])
    parser.add_argument("--per-class", type=int, default=100, help="labels of the linear probe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--clock", default="cpu", choices=("cpu", "wall"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot")
    args = parser.parse_args()
    runs = json.loads(args.json.read_text())["runs"] if args.json.exists() else []
    settings = {k: v for k, v in vars(args).items() if k in ("images", "size", "arch", "per_class")}
    with tempfile.TemporaryDirectory() as folder:
        race = Race(Path(folder) / "data", Path(folder) / "scratch", args)
        unpack(args.archive, args.images, race.data)
        for seed in args.seeds:
            for arm in args.arms:
                if any((r["arm"], r["seed"]) == (arm, seed) for r in runs):
                    continue
                run = {"arm": arm, "seed": seed, "commit": commit(), "points": []}
                for point in (race.lightly if "lightly" in arm else race.ours)(arm, seed):
                    run["points"].append(point)
                    print(arm, seed, point, flush=True)
                runs.append(run)
                report = {
                    "settings": settings,
                    "machine": machine() | {"lightly": lightly.__version__},
                    "runs": runs,
                }
                args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        plot(args.plot, runs, args.clock)
    print("\n".join(table(runs, args.clock)))


if __name__ == "__main__":
    main()
