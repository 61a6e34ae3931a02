"""k-NN accuracy on CIFAR-10 after a given time of SwAV, with the automatic recipe.

    python benchmarks/knn.py --archive cifar10.zip --minutes 5 --device cuda --json knn.json

`--archive` holds `cifar10/{train,test}/<class>/*.jpg`. `unfreeze.pretrain --time-budget` trains a
ResNet-18 on the images of `train` without labels: stem, crops, batch, learning rate and the number
of epochs are derived. Then k-NN (k 20, cosine) with all labels of `train`, on all of `test`. The
clock runs from the call to the written model; listing and checking the files is included.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import unfreeze
from frozen import repack
from unfreeze.evaluation.knn import knn_accuracy

AIMS = {5.0: 0.80, 15.0: 0.85}  # minutes on a GPU like an H200: accuracy
TRAIN, TEST = "train", "val"  # as `repack` names them


def knn(model: Path, data: Path, device: str, scratch: Path) -> float:
    """k-NN accuracy of a model folder."""
    arrays = {}
    for split in (TRAIN, TEST):
        out = scratch / f"{split}.npz"
        unfreeze.embed(str(model), str(data), str(out), split=split, batch_size=256, device=device)
        with np.load(out) as loaded:
            arrays[split] = {name: loaded[name] for name in ("features", "labels")}
    return knn_accuracy(
        *(
            torch.from_numpy(values.astype(kind))
            for split in (TRAIN, TEST)
            for values, kind in (
                (arrays[split]["features"], np.float32),
                (arrays[split]["labels"], np.int64),
            )
        )
    )


def main() -> None:
    """Pretrain for the given time, print the accuracy and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--epochs", type=int, help="instead of --minutes")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="share of the images to use")
    parser.add_argument("--json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = scratch / "images.zip"
        counts = repack(args.archive, args.share, data)
        by_time = {"time_budget": f"{60 * args.minutes:g}s"}
        began = time.perf_counter()
        result = unfreeze.pretrain(
            str(data),
            out=str(scratch / "run"),
            arch=args.arch,
            device=args.device,
            seed=args.seed,
            watch_every=0,
            **(by_time if args.epochs is None else {"epochs": args.epochs}),
        )
        seconds = time.perf_counter() - began
        accuracy = knn(scratch / "run", data, args.device, scratch)
        config = (scratch / "run" / "config.toml").read_text(encoding="utf-8")
    aim = AIMS.get(args.minutes) if args.epochs is None else None
    report = {
        "knn": round(accuracy, 4),
        "aim": aim,
        "images": {"train": result.images, "test": counts[TEST]},
        "epochs": result.epochs,
        "seconds": round(seconds, 1),
        "images_per_second": result.images_per_second,
        "loss": result.loss,
        "settings": {k: v for k, v in vars(args).items() if k not in ("json", "archive")},
        "config": config,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "unfreeze": unfreeze.__version__,
    }
    beside = f" (aim {aim:.2f} on a GPU)" if aim else ""
    print(
        f"k-NN accuracy {accuracy:.4f}{beside} of {counts[TEST]:,} images after {result.epochs} "
        f"epochs of {result.images:,} images in {seconds:.0f} s"
    )
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
