"""Does continued pretraining pay: EfficientNet-Lite0 from ImageNet, on photographs and on CIFAR-10.

    python benchmarks/continued.py --shared ../shared --json benchmarks/results/continued.json

`--shared` holds data/trashnet-subset.zip, data/cifar10.zip and weights/efficientnet-lite0-
imagenet.pth. For each data set and seed: `unfreeze pretrain --init` on training images with labels
that only the feature evaluation reads, then k-NN (k = 20) and a linear probe (logistic regression)
on held-out images, with the features of the start, of the last epoch, and of the weights that the
run kept. trashnet: a random 70 % of the images of each class, by seed, the other 30 % held out (the
same objects are photographed several times, so both accuracies are optimistic). CIFAR-10: the first
1,000 names of each class of `train`, and the first 200 of each of `test`. `--variants plain` is the
same without what `pretrain --init` adds: all layers at the same rate from the first step, batch
norms with statistics of the batch.
Every finished run is in the JSON at once; the same command continues where it was stopped.
"""

import argparse
import json
import platform
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
from unfreeze.evaluation.knn import knn_accuracy

ARCH = "timm/tf_efficientnet_lite0"
SIZES = {"trashnet": 96, "cifar": 64}  # pixels; CIFAR's 32 are enlarged
EPOCHS = {"trashnet": 20, "cifar": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "auto": {},
    "plain": {"freeze_backbone_epochs": 0, "layer_decay": 1.0, "bn_statistics": "batch"},
}


def unpack(archive: Path, folder: Path, counts: dict[str, int]) -> None:
    """Extract the first `counts[split]` images of each class of a split (no split: "all")."""
    if folder.exists():
        return
    with zipfile.ZipFile(archive) as members:
        by_class = defaultdict(list)
        for name in sorted(members.namelist()):
            if name.endswith(".jpg"):
                *_, split, label, _ = ("all", *name.split("/"))
                split = split if split in counts else "all"
                by_class[split, label].append(name)
        for (split, label), names in by_class.items():
            for name in names[: counts[split]]:
                target = folder / split / label / Path(name).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(members.read(name))


def split_photos(folder: Path, seed: int) -> tuple[Path, Path]:
    """Folders of links to 70 % of the images of each class, and to the others."""
    rng = np.random.default_rng(seed)
    made = tuple(folder.with_name(f"trashnet-{seed}-{part}") for part in ("train", "test"))
    for label in sorted((folder / "all").iterdir()):
        files = sorted(label.iterdir())
        order = rng.permutation(len(files))
        for number, index in enumerate(order):
            target = made[number >= 0.7 * len(files)] / label.name / files[index].name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(files[index].resolve())
    return made[0], made[1]


def features(weights: str, data: Path, out: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(features [N, D], labels [N]) of the images of a folder; `weights` have a preprocessing."""
    out.unlink(missing_ok=True)
    unfreeze.embed(weights, str(data), out=str(out), progress=False)
    with np.load(out) as arrays:
        return torch.from_numpy(arrays["features"]).float(), torch.from_numpy(arrays["labels"])


def probed(weights: str, train: Path, test: Path, work: Path) -> dict[str, float]:
    """Accuracy of k-NN and of a linear probe on `test`."""
    (x, y), (q, truth) = (
        features(weights, part, work / f"{name}.npz")
        for name, part in (("train", train), ("test", test))
    )
    scale = StandardScaler().fit(x)
    linear = LogisticRegression(C=0.1, max_iter=1000).fit(scale.transform(x), y)
    return {
        "knn": knn_accuracy(x, y, q, truth),
        "linear": float(linear.score(scale.transform(q), truth)),
        "images": len(truth),
    }


def one(name: str, variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Continue once, and measure start, last epoch and what was kept."""
    work, size = Path(args.work), SIZES[name]
    shared = Path(args.shared)
    weights = str(shared / "weights/efficientnet-lite0-imagenet.pth")
    if name == "trashnet":
        unpack(shared / "data/trashnet-subset.zip", work / "trashnet", {"all": 10_000})
        train, test = split_photos(work / "trashnet", seed)
    else:
        counts = {"train": args.cifar // 10, "test": 200}
        unpack(shared / "data/cifar10.zip", work / "cifar", counts)
        train, test = work / "cifar/train", work / "cifar/test"
    out, start = work / f"{name}-{variant}-{seed}", work / f"{name}-start-{seed}"
    # the weights with the size and normalisation of the run
    unfreeze.pretrain(
        str(train), out=str(start), arch=ARCH, init=weights, image_size=size, seed=seed, epochs=0,
        overwrite=start.exists(), tune="off", device=args.device, progress=False,
    )  # fmt: skip
    began = time.time()
    result = unfreeze.pretrain(
        str(train), out=str(out), arch=ARCH, init=weights, image_size=size, seed=seed,
        epochs=args.epochs or EPOCHS[name], precision="fp32", tune="off", device=args.device,
        resume="auto", progress=False, **VARIANTS[variant],
    )  # fmt: skip
    seconds = round(time.time() - began, 1)
    table = {
        which: probed(str(path), train, test, work)
        for which, path in (
            ("start", start),
            ("kept", out),
            ("last", out / "checkpoints/last.ckpt"),
        )
    }
    knn = [m for m in result.rows() if m.get("knn_accuracy") is not None]
    return {
        "data": name, "variant": variant, "seed": seed, "image_size": size, "kept": result.kept,
        "epochs": result.epochs, "steps": result.steps, "seconds": seconds,
        "evaluations": [(m["step"], m["knn_accuracy"]) for m in knn],
        "continued": result.continued, "accuracy": table,
    }  # fmt: skip


def main() -> None:
    """Run what is missing, print a line for each run, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", required=True, help="folder of data/ and weights/")
    parser.add_argument("--data", nargs="+", default=["trashnet", "cifar"], choices=list(SIZES))
    parser.add_argument("--variants", nargs="+", default=["auto"], choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cifar", type=int, default=10_000, help="training images of CIFAR-10")
    parser.add_argument("--epochs", type=int, help="epochs (default: 20 for trashnet, 2 for CIFAR)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", default="/tmp/unfreeze-continued", help="folder for runs")
    parser.add_argument("--json", required=True)
    args = parser.parse_args()
    path = Path(args.json)
    report = json.loads(path.read_text()) if path.exists() else {"runs": []}
    report["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "unfreeze": unfreeze.__version__,
    }
    done = {(run["data"], run["variant"], run["seed"]) for run in report["runs"]}
    for name in args.data:
        for variant in args.variants:
            for seed in args.seeds:
                if (name, variant, seed) in done:
                    continue
                run = one(name, variant, seed, args)
                report["runs"].append(run)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(report, indent=1) + "\n")
                cells = "  ".join(
                    f"{which} k-NN {at['knn']:.3f} linear {at['linear']:.3f}"
                    for which, at in run["accuracy"].items()
                )
                kept = f"kept {run['kept']}, {run['seconds']} s"
                print(f"{name} {variant} seed {seed}: {cells}  [{kept}]", flush=True)


if __name__ == "__main__":
    main()
