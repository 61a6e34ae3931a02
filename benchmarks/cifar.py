"""SwAV on CIFAR-10: k-NN and linear-probe accuracy before, during and after pretraining.

    python benchmarks/cifar.py --archive cifar10.zip --seeds 0 1 2 --optimizer adamw

`--archive` holds `cifar10/{train,test}/<class>/*.jpg`. Pretraining uses the first `--images` / 10
names of each class of `train`, without labels. The features are evaluated on all of `test`: k-NN
(k 20, cosine, all labels) and logistic regression on 100 labels per class. Epoch 0 is the random
initialization.
"""

import argparse
import json
import platform
import tempfile
import time
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

import unfreeze
from unfreeze.checkpoints.model_file import load_model, save_model
from unfreeze.checkpoints.read import read_checkpoint
from unfreeze.data.index.splits import subset
from unfreeze.evaluation.knn import knn_accuracy
from unfreeze.evaluation.logistic_regression import linear_accuracy


def unpack(archive: str, images: int, folder: Path) -> None:
    """Extract the first `images` / 10 images of each class of train, and all of test."""
    with zipfile.ZipFile(archive) as members:
        by_class = defaultdict(list)
        for name in sorted(members.namelist()):
            if name.endswith(".jpg"):
                _, split, label, _ = name.split("/")
                by_class[split, label].append(name)
        for (split, _), names in by_class.items():
            for name in names if split == "test" else names[: images // 10]:
                target = folder / Path(name).relative_to("cifar10")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(members.read(name))


def evaluate_backbone(model: Path, data: Path, scratch: Path) -> dict[str, float]:
    """k-NN and linear-probe accuracy of a model folder."""
    files = {}
    for split in ("train", "test"):
        out = scratch / f"{split}.npz"
        unfreeze.embed(str(model), str(data), str(out), split=split, batch_size=256)
        files[split] = dict(np.load(out))
    train, test = files["train"], files["test"]
    labels = train["labels"].astype(np.int64)
    truth = test["labels"].astype(np.int64)
    few = subset(train["labels"], np.arange(len(labels)), per_class=100, seed=0)
    tensors = [torch.from_numpy(a) for a in (train["features"], labels, test["features"], truth)]
    return {
        "knn": knn_accuracy(*tensors),
        "linear_100": linear_accuracy(
            train["features"][few], labels[few], test["features"], truth, C=0.01
        ),
    }


def one_run(data: Path, seed: int, args: argparse.Namespace, scratch: Path) -> dict:
    """Pretrain one seed; the accuracies over epochs."""
    common = {"arch": args.arch, "seed": seed, "optimizer": args.optimizer, "device": args.device}
    start = scratch / f"start-{seed}"
    unfreeze.pretrain(str(data), out=str(start), epochs=0, **common)
    curve = [{"epoch": 0, **evaluate_backbone(start, data, scratch)}]
    run = scratch / f"run-{seed}"
    result = unfreeze.pretrain(
        str(data), out=str(run), epochs=args.epochs, keep_every=args.every, **common
    )
    _, card = load_model(run)
    for path in sorted((run / "checkpoints").glob("epoch-*.ckpt")):
        tensors = read_checkpoint(path).tensors
        inner = {n.removeprefix("backbone."): t for n, t in tensors.items() if "backbone." in n}
        save_model(scratch / "at" / "model", inner, card)
        epoch = int(path.name.split("_")[0].removeprefix("epoch-"))
        curve.append({"epoch": epoch, **evaluate_backbone(scratch / "at", data, scratch)})
        print(f"seed {seed} {curve[-1]}", flush=True)
    return {
        "seed": seed,
        "curve": curve,
        "loss": result.loss,
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
    }


def machine() -> dict[str, str | int]:
    """The machine and the versions."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "unfreeze": unfreeze.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def main() -> None:
    """Run all seeds, print one line per seed and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--arch", default="unfreeze/small")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "larc"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.time()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        data, scratch = Path(folder) / "data", Path(folder) / "scratch"
        unpack(args.archive, args.images, data)
        for seed in args.seeds:
            runs.append(one_run(data, seed, args, scratch))
            first, last = runs[-1]["curve"][0], runs[-1]["curve"][-1]
            print(
                f"seed {seed}: k-NN {first['knn']:.4f} -> {last['knn']:.4f}, linear "
                f"{first['linear_100']:.4f} -> {last['linear_100']:.4f}",
                flush=True,
            )
    gains = [r["curve"][-1]["knn"] - r["curve"][0]["knn"] for r in runs]
    print(
        f"k-NN gain {100 * np.mean(gains):.1f} points (each: "
        f"{', '.join(f'{100 * g:.1f}' for g in gains)})"
    )
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k not in ("archive", "json")}
        report = {
            "settings": settings,
            "machine": machine(),
            "runs": runs,
            "seconds": round(time.time() - started, 1),
        }
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
