"""The pass of a frozen network over images, in images per second: ResNet-50 at 224 pixels.

    python benchmarks/feature_pass.py --photos photographs.zip --device cuda --json pass.json

`unfreeze.finetune --freeze all` computes the features of each image once and caches them; timed is
that pass over the training images alone, as `finetune` makes it, from decoding to the written
cache. Once from JPEG (`--store off`), once from images that were decoded before (`--store memory`).
Each photograph is used `--copies` times. The weights are random: the benchmark compares time.
"""

import argparse
import json
import os
import platform
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
import torchvision

import unfreeze
from unfreeze.transfer.feature_cache import builder

AIM = 3_000  # images per second on a GPU like an H200
VAL = 4  # validation images of each class


def copied(photos: str, copies: int, limit: int | None, target: Path) -> int:
    """Write `train/CLASS/` with copies of the photographs and a few as `val/`; returns the count.

    `limit`: photographs of each class.
    """
    classes: dict[str, list[str]] = {}
    with zipfile.ZipFile(photos) as members, zipfile.ZipFile(target, "w") as packed:
        for name in sorted(members.namelist()):
            if name.lower().endswith(".jpg"):
                classes.setdefault(Path(name).parent.name, []).append(name)
        for label, names in classes.items():
            for number, name in enumerate(names[:limit]):
                content = members.read(name)
                for copy in range(copies):
                    packed.writestr(f"train/{label}/{number:04d}-{copy}.jpg", content)
            for number, name in enumerate(names[:VAL]):
                packed.writestr(f"val/{label}/{number}.jpg", members.read(name))
    return copies * sum(len(names[:limit]) for names in classes.values())


def random_weights(arch: str, target: Path) -> None:
    """Save a random state dict; its residual branches are zero, so that no activation is large."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(arch, weights=None, zero_init_residual=True)
    torch.save(network.state_dict(), target)


def timed(data: Path, weights: Path, out: Path, args: argparse.Namespace, store: str) -> dict:
    """Seconds of the pass over the training images, which is timed within a run of one epoch."""
    os.environ["UNFREEZE_CACHE"] = str(out.with_suffix(".cache"))
    module: Any = builder
    original, seconds = module.cache_features, []

    def clocked(*given: Any) -> Any:
        began = time.perf_counter()
        cached = original(*given)
        seconds.append(time.perf_counter() - began)
        return cached

    module.cache_features = clocked
    machine: dict[str, Any] = {"store": store, "image_size": args.size}
    machine |= {"device": args.device, "precision": args.precision}
    try:
        result = unfreeze.finetune(
            str(data),
            out=str(out),
            arch=f"torchvision/{args.arch}",
            weights=str(weights),
            freeze="all",
            augment="none",
            cache="features",
            head_solver="sgd",
            sweep="off",
            epochs=1,
            **machine,
        )
    finally:
        module.cache_features = original
    return {"seconds": round(seconds[0], 3), "whole_run": round(result.seconds, 1)}


def main() -> None:
    """Time both passes, print them and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="zip of CLASS/*.jpg")
    parser.add_argument("--copies", type=int, default=12)
    parser.add_argument("--limit", type=int, help="photographs of each class")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json")
    args = parser.parse_args()
    passes = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data, weights = scratch / "images.zip", scratch / "random.pth"
        images = copied(args.photos, args.copies, args.limit, data)
        random_weights(args.arch, weights)
        for name, store in (("jpeg", "off"), ("pixel cache", "memory")):
            told = timed(data, weights, scratch / store, args, store)
            told["images_per_second"] = round(images / told["seconds"], 1)
            passes[name] = told
            print(
                f"frozen {args.arch} at {args.size} pixels, from {name}: "
                f"{told['images_per_second']:,} images/s (aim {AIM:,} on a GPU), {images:,} images "
                f"in {told['seconds']} s",
                flush=True,
            )
    report = {
        "aim": AIM,
        "images": images,
        "passes": passes,
        "settings": {k: v for k, v in vars(args).items() if k not in ("json", "photos")},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processors": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "unfreeze": unfreeze.__version__,
    }
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
