"""Scenes with known masks: a disc and a square on a noisy ground."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

CLASSES = ("ground", "disc", "square")
COLOURS = {0: (90, 90, 90), 1: (200, 60, 60), 2: (60, 60, 200)}


def scene(draw, size=(64, 96)):
    """(image, class ids): a red disc and a blue square at random places."""
    height, width = size
    mask = np.zeros(size, np.uint8)
    y, x = np.mgrid[:height, :width]
    row, column = draw.uniform(16, height - 16), draw.uniform(16, width - 16)
    mask[(y - row) ** 2 + (x - column) ** 2 < draw.uniform(8, 14) ** 2] = 1
    top, left = draw.integers(0, height - 20), draw.integers(0, width - 20)
    mask[top : top + 18, left : left + 18] = 2
    image = np.zeros((*size, 3), np.int16)
    for value, colour in COLOURS.items():
        image[mask == value] = colour
    image += draw.integers(-30, 30, image.shape).astype(np.int16)
    return np.clip(image, 0, 255).astype(np.uint8), mask


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """`images/` and `masks/` with splits train, val and test, and classes.csv."""
    folder, draw = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6), ("test", 8)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image, mask = scene(draw)
            Image.fromarray(image).save(folder / "images" / split / f"{number:02}.png")
            Image.fromarray(mask).save(folder / "masks" / split / f"{number:02}.png")
    lines = ["id,name", *(f"{number},{name}" for number, name in enumerate(CLASSES))]
    (folder / "classes.csv").write_text("\n".join(lines) + "\n")
    return folder


def weights(run):
    """The model's tensors in the last checkpoint of a run."""
    return torch.load(Path(run, "checkpoints/last.ckpt"), weights_only=True)["model"]
