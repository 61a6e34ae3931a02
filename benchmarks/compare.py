"""Does SwAV help on CIFAR-10: `unfreeze compare` with 1 %, 10 % and all labels of a subset.

    python benchmarks/compare.py --archive cifar10.zip --threads 1 --json compare.json

`--archive` holds `cifar10/{train,test}/<class>/*.jpg`. SwAV is pretrained on the first `--images`
/ 10 names of each class of `train`, without labels. Then classifiers are trained from scratch and
from its weights on the same images, for the same epochs and seeds, each with its default optimizer
and learning rate, or with SGD at the best of `--rates` by validation accuracy.
The test set is the first `--test` / 10 names of each class of `test`, evaluated once per run.
"""

import argparse
import json
import platform
import tempfile
import time
import zipfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import unfreeze

# share of the labels -> epochs: about 500, 1,000 and 1,250 steps with 4,000 training images
EPOCHS = {0.01: 50, 0.1: 40, 1.0: 10}


def unpack(archive: str, counts: dict[str, int], folder: Path) -> None:
    """Extract the first counts[split] / 10 images of each class."""
    with zipfile.ZipFile(archive) as members:
        by_class = defaultdict(list)
        for name in sorted(members.namelist()):
            if name.endswith(".jpg"):
                _, split, label, _ = name.split("/")
                by_class[split, label].append(name)
        for (split, _), names in by_class.items():
            for name in names[: counts[split] // 10]:
                target = folder / Path(name).relative_to("cifar10")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(members.read(name))


def compared(data: Path, swav: Path, share: float, freeze: str, args: argparse.Namespace) -> dict:
    """Run one comparison, or read its result if the folder is complete."""
    began = time.time()
    # with a frozen backbone the head tries its own learning rates on cached features
    options: dict[str, Any] = {}
    if args.rates and freeze == "none":
        options = {"rates": args.rates, "optimizer": "sgd"}
    if share < 1:
        options["label_fraction"] = share
    result = unfreeze.compare(
        str(data),
        ["none", str(swav)],
        out=str(Path(args.out) / f"{share:g}-{freeze}"),
        resume="auto",
        freeze=freeze,
        seeds=args.seeds,
        epochs=EPOCHS[share],
        device=args.device,
        **options,
    )
    seconds = round(time.time() - began, 1)
    print(
        f"{share:.0%} of the labels, --freeze {freeze}: {result.verdict} [{seconds} s]", flush=True
    )
    return {"share": share, "freeze": freeze, "seconds": seconds, **asdict(result)}


def main() -> None:
    """Pretrain once, run all comparisons, print each verdict and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--test", type=int, default=2_000)
    parser.add_argument("--pretrain-epochs", type=int, default=15)
    parser.add_argument("--arch", default="unfreeze/small")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--freeze", nargs="+", default=["none", "all"], choices=("none", "all"))
    parser.add_argument("--rates", type=float, nargs="+", help="such as 0.01 0.03 0.1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", help="folder for the runs; existing runs are resumed")
    parser.add_argument("--json", help="file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        args.out = args.out or folder
        data, swav = Path(args.out) / "data", Path(args.out) / "swav"
        if not data.exists():
            unpack(args.archive, {"train": args.images, "test": args.test}, data)
        pretrained = unfreeze.pretrain(
            str(data), out=str(swav), arch=args.arch, epochs=args.pretrain_epochs,
            device=args.device, resume="auto",
        )  # fmt: skip
        print(f"pretrained: loss {pretrained.loss:.3f}, {pretrained.seconds:.0f} s", flush=True)
        tables = [compared(data, swav, s, f, args) for f in args.freeze for s in args.shares]
    report = {
        "settings": {k: v for k, v in vars(args).items() if k not in ("archive", "out", "json")},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "unfreeze": unfreeze.__version__,
        },
        "pretraining_seconds": pretrained.seconds,
        "comparisons": tables,
        "seconds": round(time.time() - began, 1),
    }
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
