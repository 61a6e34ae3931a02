"""Images with several labels: patches of three colours, each there or not."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

COLOURS = {"blue": (40, 40, 230), "green": (40, 230, 40), "red": (230, 40, 40)}
OFTEN = {"blue": 0.5, "green": 0.35, "red": 0.2}  # how often an image has it
TINY = [
    *("--arch", "unfreeze/tiny", "--weights", "none", "--augment", "none", "--device", "cpu"),
    *("--precision", "fp32", "--batch-size", "16", "--epochs", "8", "--workers", "0"),
]


def patches(draw, names):
    """An image 24x24 with a patch of each of the colours, in a quarter of its own."""
    image = draw.integers(0, 70, (24, 24, 3))
    corners = draw.permutation(4)
    for corner, name in zip(corners, names, strict=False):
        row, column = 12 * (corner // 2), 12 * (corner % 2)
        image[row + 1 : row + 11, column + 1 : column + 11] = COLOURS[name]
    return np.clip(image + draw.integers(-20, 20, image.shape), 0, 255).astype(np.uint8)


def write_patches(folder, counts, seed=0):
    """Rows (path, names, split) of new images in `folder`; `counts`: images of each split."""
    draw, rows = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        for number in range(count):
            names = [name for name, share in OFTEN.items() if draw.random() < share]
            path = f"{split}-{number:03}.png"
            Image.fromarray(patches(draw, names)).save(folder / path)
            rows.append((path, names, split))
    return rows


def write_table(path, header, rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


@pytest.fixture(scope="session")
def coloured_patches(tmp_path_factory):
    """Three CSV files of the same images: `names.csv`, `columns.csv` and `own-val.csv`."""
    folder = tmp_path_factory.mktemp("patches")
    rows = write_patches(folder, {"train": 120, "test": 60})
    joined = [(path, ";".join(names) or ";", split) for path, names, split in rows]
    write_table(folder / "names.csv", ("path", "label", "split"), joined)
    cells = [(path, *(int(c in names) for c in COLOURS), split) for path, names, split in rows]
    write_table(folder / "columns.csv", ("path", *COLOURS, "split"), cells)
    given = [
        (path, label, "val" if split == "train" and int(path[6:9]) >= 80 else split)
        for path, label, split in joined
    ]
    write_table(folder / "own-val.csv", ("path", "label", "split"), given)
    return folder


def weights(run):
    """The model's tensors in the last checkpoint of a run."""
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["model"]
