"""Multi-crop views: images a second on one thread, beside plain Pillow and torchvision.

    python benchmarks/views.py --images photos/ --json views.json
    python benchmarks/views.py --images cifar10/train --small --json views-small.json

2x224 + 6x96 pixels with the published augmentations from files that are read from the disk in each
round. Ours: float32 normalised from `unfreeze.swav.multicrop`; uint8 as it goes to the device; the
same from the pixel store, which holds images decoded with their shorter side at most 256. With
`--small`: two views of 32 pixels from images held in memory as uint8, for both. Rounds alternate;
the first is not counted.
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
from unfreeze.data.decode import decode, decode_all, shrink
from unfreeze.data.views.multicrop import Cut
from unfreeze.data.views.spec import preset

PHOTO: dict[str, Any] = {
    "sizes": (224, 96),
    "counts": (2, 6),
    "scales": ((0.14, 1.0), (0.05, 0.14)),
}
SMALL: dict[str, Any] = {"sizes": (32,), "counts": (2,), "scales": ((0.2, 1.0),)}
HELD = 256  # shorter side in the pixel store, pixels
Round = Callable[[int], object]


def specs(how: dict[str, Any], augment: str) -> list[Any]:
    """One spec a view."""
    each = zip(how["sizes"], how["counts"], how["scales"], strict=True)
    return [preset(augment, size, scale) for size, count, scale in each for _ in range(count)]


def photographs(files: list[Path]) -> dict[str, Round]:
    """What one round of each way does."""
    ids = np.arange(len(files))
    plain, cut = Plain(**PHOTO), Cut(0, specs(PHOTO, "photo"))
    held = [shrink(decode(path.read_bytes()), HELD) for path in files]

    def read() -> list[bytes]:
        return [path.read_bytes() for path in files]

    return {
        "plain": lambda turn: plain(read()),
        "float32": lambda turn: unfreeze.swav.multicrop(
            read(), ids=ids, epoch=turn, seed=0, **PHOTO
        ),
        "uint8": lambda turn: cut(decode_all(read()), ids, turn),
        "uint8 from the store": lambda turn: cut(held, ids, turn),
        "decoding alone": lambda turn: decode_all(read()),
    }


def small(files: list[Path]) -> dict[str, Round]:
    """The same for images of 32 pixels."""
    ids, held = np.arange(len(files)), [decode(path.read_bytes()) for path in files]
    plain = Plain(**SMALL, strength=0.5, blur=False)
    cut = Cut(0, specs(SMALL, "small"))
    return {
        "plain": lambda turn: plain(held),
        "float32": lambda turn: unfreeze.swav.multicrop(
            held, ids=ids, epoch=turn, seed=0, augment="small", **SMALL
        ),
        "uint8": lambda turn: cut(held, ids, turn),
    }


def measured(ways: dict[str, Round], count: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Images a second, and how many times the plain pipeline's: medians over rounds."""
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
            "rounds": [round(count / one, 1) for one in took],
        }
        for name, took in seconds.items()
    }


def main() -> None:
    """A line for each way."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--images", required=True, help="folder of JPEG files")
    ask.add_argument("--small", action="store_true")
    ask.add_argument("--count", type=int, help="files of a round (64; small: 1,000)")
    ask.add_argument("--rounds", type=int, default=7)
    ask.add_argument("--json")
    ask.add_argument("--plot")
    given = ask.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    count = given.count or (1_000 if given.small else 64)
    found = sorted(Path(given.images).rglob("*.jp*g"))
    files = found[:: max(1, len(found) // count)][:count]
    ways = (small if given.small else photographs)(files)
    rows = measured(ways, len(files), given.rounds)
    for name, row in rows.items():
        print(f"{name:22} {row['images_per_second']:9.1f} images/s   {row['ratio']:.2f} x plain")
    report = {
        "files": len(files),
        "rounds": given.rounds,
        "small": given.small,
        "machine": platform.processor() or platform.machine(),
        "unfreeze": unfreeze.__version__,
        "torch": torch.__version__,
        "ways": rows,
    }
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    if given.plot:
        case = "32-pixel images, 2x32" if given.small else "photographs, 2x224 + 6x96"
        rounds = {case: {name: row["rounds"] for name, row in rows.items()}}
        draw_rounds(given.plot, rounds, "images/s on one thread", peer="plain")


if __name__ == "__main__":
    main()
