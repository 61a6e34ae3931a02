"""Seconds per epoch of SwAV on CIFAR-10: ResNet-18 with the small stem, 2x32 crops.

    python benchmarks/epoch.py --archive cifar10.zip --device cuda --json epoch.json

`unfreeze.pretrain` with its defaults on the 50,000 training images, without feature evaluation; the
first epoch is excluded. Wall-clock seconds from the end of one epoch to the end of the next,
checkpoints included, and the share of step time spent waiting for data.
"""

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

import unfreeze
from drawing import draw_rounds
from records import spent
from unfreeze.commands.pretrain import run_pretrain
from unfreeze.config.layering import load_settings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.runtime.console import QuietConsole

AIM = 4.0  # seconds on a GPU like an H200


def main() -> None:
    """Pretrain and print the median seconds per epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", required=True, help="zip or folder with CIFAR-10's images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json")
    parser.add_argument("--plot")
    args = parser.parse_args()
    ends = []
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            PretrainSettings,
            {
                "data": args.archive,
                "out": f"{folder}/run",
                "arch": args.arch,
                "image_size": 32,
                "size_crops": (32,),
                "nmb_crops": (2,),
                "min_scale_crops": (0.2,),
                "max_scale_crops": (1.0,),
                "augment": "small",
                "nmb_prototypes": 300,
                "queue_length": 0,
                "batch_size": args.batch_size,
                "epochs": args.epochs,
                "limit": args.limit,
                "workers": args.workers,
                "device": args.device,
                "watch_every": 0,
                "on_collapse": "ignore",
            },
        )
        began = time.perf_counter()
        result = run_pretrain(
            settings, QuietConsole(), on_epoch=lambda *_: ends.append(time.perf_counter())
        )
        steps = result.steps // args.epochs
        time_of = spent(result.run, steps)
    epochs = [b - a for a, b in itertools.pairwise(ends)]
    seconds = statistics.median(epochs)
    report = {
        "images": result.images,
        "seconds": round(seconds, 3),
        "epochs": [round(value, 3) for value in epochs],
        "start_and_first_epoch": round(ends[0] - began, 2),
        "images_per_second": round(steps * args.batch_size / seconds, 1),
        "waiting": round(time_of.waiting, 4),
        "settings": {k: v for k, v in vars(args).items() if k not in ("json", "plot", "archive")},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "unfreeze": unfreeze.__version__,
    }
    print(
        f"{seconds:.2f} s per epoch of {result.images:,} images (aim {AIM:g} on a GPU), "
        f"{report['images_per_second']:,} images/s, waiting for data {100 * time_of.waiting:.1f} %"
    )
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        draw_rounds(args.plot, {"an epoch of CIFAR-10": {"ours": epochs}}, "s")


if __name__ == "__main__":
    main()
