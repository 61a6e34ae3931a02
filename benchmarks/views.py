"""Multi-crop speed on one thread, in images per second, against plain Pillow and torchvision.

    python benchmarks/views.py --images photos/ --json views.json
    python benchmarks/views.py --images cifar10/train --small --json views-small.json

2x224 + 6x96 crops with the published augmentations; files are read from disk in each round. Ours:
normalised float32 from `unfreeze.swav.multicrop`; uint8 as copied to the device; uint8 from the
pixel cache, which stores decoded images with a shorter side of at most 256 pixels. With `--small`:
two 32-pixel crops from uint8 images in memory, for both. Rounds alternate; the first is excluded.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import unfreeze
from drawing import draw_rounds
from plain import Plain
from unfreeze.data.augment.config import preset
from unfreeze.data.augment.multicrop import MultiCropTransform
from unfreeze.data.images.decode import decode, decode_all, resize_shorter_side

PHOTO: dict[str, Any] = {
    "sizes": (224, 96),
    "counts": (2, 6),
    "scales": ((0.14, 1.0), (0.05, 0.14)),
}
SMALL: dict[str, Any] = {"sizes": (32,), "counts": (2,), "scales": ((0.2, 1.0),)}
CACHED = 256  # shorter side in the pixel cache, pixels
Round = Callable[[int], object]


def specs(how: dict[str, Any], augment: str) -> list[Any]:
    """The specs of all views."""
    each = zip(how["sizes"], how["counts"], how["scales"], strict=True)
    return [preset(augment, size, scale) for size, count, scale in each for _ in range(count)]


def photographs(files: list[Path]) -> dict[str, Round]:
    """One round of each variant on photographs."""
    ids = np.arange(len(files))
    plain, cut = Plain(**PHOTO), MultiCropTransform(0, specs(PHOTO, "photo"))
    cached = [resize_shorter_side(decode(path.read_bytes()), CACHED) for path in files]

    def read() -> list[bytes]:
        return [path.read_bytes() for path in files]

    return {
        "plain": lambda turn: plain(read()),
        "float32": lambda turn: unfreeze.swav.multicrop(
            read(), ids=ids, epoch=turn, seed=0, **PHOTO
        ),
        "uint8": lambda turn: cut(decode_all(read()), ids, turn),
        "uint8 from the store": lambda turn: cut(cached, ids, turn),
        "decoding alone": lambda turn: decode_all(read()),
    }


def small(files: list[Path]) -> dict[str, Round]:
    """One round of each variant on images of 32 pixels."""
    ids, cached = np.arange(len(files)), [decode(path.read_bytes()) for path in files]
    plain = Plain(**SMALL, strength=0.5, blur=False)
    cut = MultiCropTransform(0, specs(SMALL, "small"))
    return {
        "plain": lambda turn: plain(cached),
        "float32": lambda turn: unfreeze.swav.multicrop(
            cached, ids=ids, epoch=turn, seed=0, augment="small", **SMALL
        ),
        "uint8": lambda turn: cut(cached, ids, turn),
    }


def measured(ways: dict[str, Round], count: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Images per second and the ratio to the plain pipeline: medians over rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, work in ways.items():
            began = time.perf_counter()
            work(turn)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {
        name: {
            "images_per_second": round(count / statistics.median(took), 1),
            "slowest": round(count / max(took), 1),
            "fastest": round(count / min(took), 1),
            "ratio": round(
                statistics.median(a / b for a, b in zip(seconds["plain"], took, strict=True)), 2
            ),
            "rounds": [round(count / value, 1) for value in took],
        }
        for name, took in seconds.items()
    }


def main() -> None:
    """Run all variants and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="folder of JPEG files")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--count", type=int, help="files per round (64; with --small 1,000)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json")
    parser.add_argument("--plot")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    count = args.count or (1_000 if args.small else 64)
    paths = sorted(Path(args.images).rglob("*.jp*g"))
    files = paths[:: max(1, len(paths) // count)][:count]
    ways = (small if args.small else photographs)(files)
    rows = measured(ways, len(files), args.rounds)
    for name, row in rows.items():
        print(f"{name:22} {row['images_per_second']:9.1f} images/s   {row['ratio']:.2f} x plain")
    report = {
        "files": len(files),
        "rounds": args.rounds,
        "small": args.small,
        "machine": platform.processor() or platform.machine(),
        "unfreeze": unfreeze.__version__,
        "torch": torch.__version__,
        "ways": rows,
    }
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        case = "32-pixel images, 2x32" if args.small else "photographs, 2x224 + 6x96"
        rounds = {case: {name: row["rounds"] for name, row in rows.items()}}
        draw_rounds(args.plot, rounds, "images/s on one thread", peer="plain")


if __name__ == "__main__":
    main()
