"""Feature cache: a frozen ResNet-50 on CIFAR-10, cached features against a plain loop.

    python benchmarks/frozen.py --archive cifar10.zip --json benchmarks/results/frozen.json

`--archive` holds `cifar10/{train,test}/<class>/*.jpg`, 50,000 and 10,000 images of 32x32. `train`
is the training set, `test` the validation set, so each epoch processes all 60,000 images, without
augmentation, in batches of 200, with one learning rate. The weights are random and ImageNet-shaped,
with batch-norm statistics of the images: the benchmark compares time, and that accuracy is equal.
`--weights` takes another file.

Three variants: a plain loop (decode, frozen network in eval mode in float32, linear layer, SGD);
`finetune --cache off`; `finetune` with the feature cache. Complete runs are timed by the clock
around `unfreeze.finetune`, epochs by when their line appears in metrics.jsonl; the first epoch is a
warm-up and excluded. Each run with cached features starts with an empty cache.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import threading
import time
import zipfile
from collections import defaultdict
from pathlib import Path

import torch
import torchvision
from PIL import Image

import unfreeze

SPLITS = {"train": "train", "test": "val"}


def repack(archive: str, share: float, target: Path) -> dict[str, int]:
    """Copy the first `share` of each class of train and test (as val); returns the counts."""
    counts: dict[str, int] = defaultdict(int)
    with zipfile.ZipFile(archive) as members, zipfile.ZipFile(target, "w") as packed:
        by_class = defaultdict(list)
        for name in sorted(members.namelist()):
            if name.endswith(".jpg"):
                _, split, label, file = name.split("/")
                by_class[SPLITS[split], label].append((name, file))
        for (split, label), names in by_class.items():
            for name, file in names[: round(len(names) * share)]:
                packed.writestr(f"{split}/{label}/{file}", members.read(name))
                counts[split] += 1
    return dict(counts)


def random_weights(arch: str, data: Path, target: Path) -> None:
    """Save a random state dict of `arch` with batch-norm statistics of 512 images."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(arch, weights=None)
    with zipfile.ZipFile(data) as members:
        names = [name for name in members.namelist() if name.startswith("train/")]
        chosen = names[:: max(1, len(names) // 512)][:512]
        pixels = [
            torchvision.transforms.functional.to_tensor(Image.open(members.open(n)).convert("RGB"))
            for n in chosen
        ]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # cumulative average over all batches
    with torch.no_grad():
        for batch in torch.stack(pixels).split(64):
            network((batch - 0.45) / 0.225)
    torch.save(network.state_dict(), target)


class Watch:
    """Records when each epoch's validation line appears in a run's metrics.jsonl."""

    def __init__(self, run: Path) -> None:
        self.path, self.times, self.ended = run / "metrics.jsonl", list[float](), False
        self.thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended = True
        self.thread.join()

    def _poll(self) -> None:
        while not self.ended:
            time.sleep(0.02)
            if self.path.exists():
                lines = self.path.read_text().count('"split": "val"')
                self.times += [time.perf_counter()] * (lines - len(self.times))


def timed(args, data: Path, weights: str, scratch: Path, name: str, **how) -> dict:
    """One run from an empty cache: seconds of the run, of training and of each epoch."""
    os.environ["UNFREEZE_CACHE"] = str(scratch / f"cache-{name}")
    settings = {
        "arch": f"torchvision/{args.arch}",
        "weights": weights,
        "freeze": "all",
        "augment": "none",
        "image_size": 32,
        "batch_size": args.batch_size,
        "optimizer": "sgd",
        "lr": args.lr,
        "weight_decay": 1e-4,
        "device": args.device,
        "precision": args.precision,
    }
    began = time.perf_counter()
    with Watch(scratch / name) as watch:
        result = unfreeze.finetune(str(data), out=str(scratch / name), **{**settings, **how})
    whole = time.perf_counter() - began
    epochs = [b - a for a, b in zip(watch.times, watch.times[1:], strict=False)]
    times = {
        "epochs": result.epochs,
        "whole": whole,
        "training": result.seconds,  # feature extraction included
        "epoch_seconds": epochs,
        "val_accuracy": result.val_accuracy,
        "frozen_unchanged": result.frozen_unchanged,
    }
    print(
        f"{name}: {result.epochs} epochs, {whole:.1f} s in total, {result.seconds:.1f} s training, "
        f"epoch {statistics.median(epochs or [float('nan')]):.3f} s, val "
        f"{result.val_accuracy:.4f}",
        flush=True,
    )
    return times


def loop(args, data: Path, weights: str) -> list[float]:
    """Seconds of each epoch of the plain loop, after one warm-up epoch."""
    network = torchvision.models.get_model(args.arch, weights=None)
    network.load_state_dict(torch.load(weights, weights_only=True))
    width = network.fc.in_features
    network.fc = torch.nn.Identity()
    network.eval().requires_grad_(False)
    head = torch.nn.Linear(width, 10)
    optimizer = torch.optim.SGD(head.parameters(), lr=args.lr, momentum=0.9)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    took = []
    with zipfile.ZipFile(data) as members:
        listed = members.namelist()
        names = {split: [n for n in listed if n.startswith(split)] for split in ("train", "val")}
        classes = sorted({name.split("/")[1] for name in names["train"]})

        def batch(chosen: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            pixels = [
                torchvision.transforms.functional.to_tensor(Image.open(members.open(n)))
                for n in chosen
            ]
            scaled = (torch.stack(pixels) - mean[:, None, None]) / std[:, None, None]
            return scaled, torch.tensor([classes.index(n.split("/")[1]) for n in chosen])

        for _ in range(args.plain_epochs + 1):
            began = time.perf_counter()
            order = torch.randperm(len(names["train"])).tolist()
            for split, indices in (("train", order), ("val", range(len(names["val"])))):
                chosen = [names[split][index] for index in indices]
                for start in range(0, len(chosen), args.batch_size):
                    images, labels = batch(chosen[start : start + args.batch_size])
                    with torch.no_grad():
                        features = network(images)
                    loss = torch.nn.functional.cross_entropy(head(features), labels)
                    if split == "train":
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
            took.append(time.perf_counter() - began)
    print(f"loop: epochs of {', '.join(f'{s:.1f}' for s in took)} s", flush=True)
    return took[1:]


def figures(runs: dict[str, dict], epochs: int) -> dict[str, float]:
    """The compared figures: one epoch, `epochs` epochs, slopes and complete runs."""
    plain, one, few, many = (runs[k] for k in ("plain", "plain-1", "kept", "kept-many"))
    median = statistics.median(plain["epoch_seconds"])
    slope = (plain["whole"] - one["whole"]) / (plain["epochs"] - one["epochs"])
    kept_slope = (many["whole"] - few["whole"]) / (many["epochs"] - few["epochs"])
    whole_plain = one["whole"] + (epochs - 1) * slope
    written = statistics.median(runs["loop"]["epoch_seconds"])
    return {
        "loop_epoch": written,
        "ratio_to_the_loop": epochs * written / many["training"],
        "plain_epoch": median,
        "plain_epochs": epochs * median,
        "kept_epochs_pass_included": many["training"],
        "ratio": epochs * median / many["training"],
        "plain_slope": slope,
        "kept_slope": kept_slope,
        "ratio_of_slopes": slope / kept_slope,
        "plain_whole_by_slope": whole_plain,
        "kept_whole": many["whole"],
        "ratio_of_whole_runs": whole_plain / many["whole"],
        "accuracy_difference": plain["val_accuracy"] - few["val_accuracy"],
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
    """Run all variants, print the figures and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--share", type=float, default=1.0, help="share of the images to use")
    parser.add_argument("--arch", default="resnet50", help="torchvision model name")
    parser.add_argument("--weights", help="checkpoint file (default: random, ImageNet-shaped)")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument(
        "--plain-epochs", type=int, default=3, help="timed epochs of the plain loop"
    )
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--sweep", action="store_true", help="also a run that sweeps 18 pairs of settings"
    )
    parser.add_argument("--json", help="file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    few = args.plain_epochs + 1
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = scratch / "images.zip"
        counts = repack(args.archive, args.share, data)
        weights = args.weights or str(scratch / "random.pth")
        if not args.weights:
            random_weights(args.arch, data, Path(weights))
        common = (args, data, weights, scratch)
        runs = {
            "loop": {"epoch_seconds": loop(args, data, weights)},
            "plain-1": timed(*common, "plain-1", cache="off", epochs=1),
            "plain": timed(*common, "plain", cache="off", epochs=few),
            "kept": timed(*common, "kept", cache="features", epochs=few),
            "kept-many": timed(*common, "kept-many", cache="features", epochs=args.epochs),
        }
        if args.sweep:
            free = {"lr": None, "weight_decay": None}
            runs["swept"] = timed(*common, "swept", cache="features", epochs=args.epochs, **free)
    results = figures(runs, args.epochs)
    for name, value in results.items():
        print(f"{name:28} {value:.4g}")
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k not in ("archive", "json", "weights")}
        settings |= {"weights": "a file" if args.weights else "random", "images": counts}
        report = {"settings": settings, "machine": machine(), "figures": results, "runs": runs}
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
