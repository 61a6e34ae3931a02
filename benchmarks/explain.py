"""Do class-activation maps point at the object? The grid pointing game.

    python benchmarks/explain.py --archive trashnet.zip --arch timm/tf_efficientnet_lite0 \
        --weights efficientnet-lite0.pth --json explain.json

For each seed a frozen network is fine-tuned on a part of the images. Of the others, four of
different classes are put into the quarters of one image; the map of each of the four classes should
have its peak, and most of its sum, in that quarter (a quarter by chance). Also: the share of pairs
whose quarter the network itself calls right, and the same with a random head and random weights.
"""

import argparse
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import unfreeze
from unfreeze.models.activation_maps import activation_maps
from unfreeze.reports.intervals import wilson_interval
from unknown import extract, split


def mosaics(
    folder: Path, classes: list[str], count: int, side: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N, S, S, 3], classes [N, 4] of the quarters, row by row)."""
    rng = np.random.default_rng(seed)
    files = [sorted((folder / name).iterdir()) for name in classes]
    half, images, labels = side // 2, [], []
    for _ in range(count):
        image, chosen = np.zeros((2 * half, 2 * half, 3), np.uint8), rng.permutation(len(classes))
        for place, label in enumerate(chosen[:4].tolist()):
            with Image.open(files[label][rng.integers(len(files[label]))]) as opened:
                quarter = np.asarray(opened.convert("RGB").resize((half, half)))
            top, left = half * (place // 2), half * (place % 2)
            image[top : top + half, left : left + half] = quarter
        images.append(image)
        labels.append(chosen[:4])
    return np.stack(images), np.stack(labels)


def game(network: Any, images: np.ndarray, labels: np.ndarray, *, relative: bool) -> dict[str, Any]:
    """Share of maps with their peak in the quarter of their class; mean share of the sum there."""
    peaks, shares = [], []
    for start in range(0, len(images), 16):
        batch = network.prepare(torch.from_numpy(images[start : start + 16]))
        for place in range(4):
            wanted = torch.from_numpy(labels[start : start + 16, place])
            maps = activation_maps(network, batch, wanted, relative=relative).numpy()
            h, w = maps.shape[1:]
            peak = maps.reshape(len(maps), -1).argmax(axis=1)
            quarter = 2 * ((peak // w + 0.5) // (h / 2)) + (peak % w + 0.5) // (w / 2)
            peaks += (quarter == place).tolist()
            # cells on the middle line belong to both sides
            rows, columns = (np.clip(np.arange(n + 1), 0, n / 2) for n in (h, w))
            first = np.diff(rows), np.diff(columns)
            row, column = (
                part if side == 0 else 1 - part
                for part, side in zip(first, (place // 2, place % 2), strict=True)
            )
            inside = (maps * row[:, None] * column[None]).sum(axis=(1, 2))
            shares += (inside / np.maximum(maps.sum(axis=(1, 2)), 1e-12)).tolist()
    hits = int(np.sum(peaks))
    return {
        "peak": hits / len(peaks),
        "interval": wilson_interval(hits, len(peaks)),
        "share": float(np.mean(shares)),
        "n": len(peaks),
    }


def randomised(network: Any, *, head_only: bool) -> Any:
    """A copy with new weights in its head, or everywhere."""
    torch.manual_seed(0)
    other = copy.deepcopy(network)
    layers = [m for m in other.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers[-1:] if head_only else layers:
        layer.reset_parameters()
    return other


def measured(
    s: argparse.Namespace, classes: dict[str, list[Path]], seed: int, scratch: Path
) -> Any:
    """The figures of one seed."""
    data, run = scratch / f"data-{seed}", scratch / f"run-{seed}"
    split(classes, data, s.test, seed)
    unfreeze.finetune(
        str(data), arch=s.arch, weights=s.weights, freeze="all", out=str(run), seed=seed,
        progress=False,
    )  # fmt: skip
    result = unfreeze.evaluate(str(run), str(data), split="test", progress=False)
    network: Any = unfreeze.load(str(run))
    size = network.preprocess.image_size
    images, labels = mosaics(data / "test", list(network.classes), s.mosaics, size, seed)
    half = size // 2
    quarters = [images[:, half * (p // 2) :, half * (p % 2) :][:, :half, :half] for p in range(4)]
    right = [
        network.classes[label] == prediction.label
        for place, quarter in enumerate(quarters)
        for label, prediction in zip(labels[:, place], network.predict(list(quarter)), strict=True)
    ]
    return {
        "accuracy": result.accuracy,
        "accuracy_of_quarters": float(np.mean(right)),
        "map": game(network, images, labels, relative=True),
        "plain score": game(network, images, labels, relative=False),
        "random head": game(randomised(network, head_only=True), images, labels, relative=True),
        "random weights": game(randomised(network, head_only=False), images, labels, relative=True),
    }


def main() -> None:
    """Run all seeds and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=120)
    parser.add_argument("--test", type=float, default=0.4)
    parser.add_argument("--mosaics", type=int, default=100)
    parser.add_argument("--json")
    s = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        classes = extract(s.archive, Path(name) / "images", s.per_class)
        for seed in range(s.seeds):
            rows.append(measured(s, classes, seed, Path(name)))
            print(json.dumps(rows[-1]), flush=True)
            if s.json:
                Path(s.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
