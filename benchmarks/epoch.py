"""Seconds of an epoch of SwAV on CIFAR-10: ResNet-18 with a stem for small images, 2x32 views.

    python benchmarks/epoch.py --archive cifar10.zip --device cuda --json epoch.json

`unfreeze.pretrain` as it comes on the 50,000 images of train, without looks; the first epoch is
not counted. Seconds are of the clock from one epoch's end to the next, saving included; also what
share of the steps' time waits for data.
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
from unfreeze.api.pretrain import run_pretrain
from unfreeze.runtime.console import Quiet
from unfreeze.settings.build import layered
from unfreeze.settings.pretrain import PretrainSettings

AIM = 4.0  # seconds on a GPU like an H200


def main() -> None:
    """A line for each epoch."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--archive", required=True, help="zip or folder with CIFAR-10's images")
    ask.add_argument("--device", default="auto")
    ask.add_argument("--arch", default="resnet18")
    ask.add_argument("--epochs", type=int, default=6)
    ask.add_argument("--batch-size", type=int, default=512)
    ask.add_argument("--limit", type=int)
    ask.add_argument("--workers", type=int)
    ask.add_argument("--json")
    ask.add_argument("--plot")
    given = ask.parse_args()
    ends = []
    with tempfile.TemporaryDirectory() as place:
        settings = layered(
            PretrainSettings,
            {
                "data": given.archive,
                "out": f"{place}/run",
                "arch": given.arch,
                "image_size": 32,
                "size_crops": (32,),
                "nmb_crops": (2,),
                "min_scale_crops": (0.2,),
                "max_scale_crops": (1.0,),
                "augment": "small",
                "nmb_prototypes": 300,
                "queue_length": 0,
                "batch_size": given.batch_size,
                "epochs": given.epochs,
                "limit": given.limit,
                "workers": given.workers,
                "device": given.device,
                "watch_every": 0,
                "on_collapse": "ignore",
            },
        )
        began = time.perf_counter()
        done = run_pretrain(settings, Quiet(), on_epoch=lambda *_: ends.append(time.perf_counter()))
        steps = done.steps // given.epochs
        time_of = spent(done.run, steps)
    took = [b - a for a, b in itertools.pairwise(ends)]
    seconds = statistics.median(took)
    report = {
        "images": done.images,
        "seconds": round(seconds, 3),
        "epochs": [round(one, 3) for one in took],
        "start_and_first_epoch": round(ends[0] - began, 2),
        "images_per_second": round(steps * given.batch_size / seconds, 1),
        "waiting": round(time_of.waiting, 4),
        "settings": {k: v for k, v in vars(given).items() if k not in ("json", "plot", "archive")},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "unfreeze": unfreeze.__version__,
    }
    print(
        f"{seconds:.2f} s an epoch of {done.images:,} images (aim {AIM:g} on a GPU), "
        f"{report['images_per_second']:,} images/s, waiting for data {100 * time_of.waiting:.1f} %"
    )
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    if given.plot:
        draw_rounds(given.plot, {"an epoch of CIFAR-10": {"ours": took}}, "s")


if __name__ == "__main__":
    main()
