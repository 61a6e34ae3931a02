"""`predict --explain`, and the explained mistakes of an evaluation's report."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unfreeze.cli.main import main
from unfreeze.commands.evaluate import evaluate
from unfreeze.commands.finetune import finetune
from unfreeze.commands.predict import load, predict
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import UsageError
from unfreeze.models.activation_maps import activation_maps
from unfreeze.reports.activation_overlay import GAP, overlay_map
from unfreeze.reports.examples import read_examples
from unfreeze.reports.page import run_page
from unfreeze.reports.run_reader import read_run

TINY = {"arch": "unfreeze/tiny", "weights": "none", "augment": "none", "precision": "fp32"}
SIDE, MARK = 32, 10


def marked(folder, counts, seed=0):
    """Noise images 32 x 48 with a mark, red or green by class, in a corner of the middle square."""
    draw = np.random.default_rng(seed)
    corners = {}
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(80, 176, (SIDE, SIDE + 16, 3)).astype(np.uint8)
            top, left = (draw.integers(0, 2, 2) * (SIDE - MARK)).tolist()
            colour = (230, 40, 40) if name.endswith("red") else (40, 230, 40)
            pixels[top : top + MARK, left + 8 : left + 8 + MARK] = colour
            path = folder / name / f"{number:03}.png"
            Image.fromarray(pixels).save(path)
            corners[f"{name}/{number:03}.png"] = (top, left + 8)
    return corners


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marks")
    corners = marked(folder / "data", {"red": 40, "green": 40})
    out = str(folder / "run")
    finetune(str(folder / "data"), out=out, epochs=4, image_size=SIDE, lr=0.01, **TINY)
    return folder / "data", out, corners


def brightness_of_colour(image, overlaid):
    """How far the overlay is from the image, at each pixel."""
    return np.abs(overlaid.astype(float) - image.astype(float)).sum(axis=2)


def test_each_image_stands_beside_the_map_of_its_class(run, tmp_path, capsys):
    data, model, corners = run
    out = tmp_path / "why"
    plain = predict(model, str(data))
    assert main(["predict", str(model), str(data), "--explain", str(out)]) == 0
    labels = {str(p.path).removeprefix(f"{data}/"): p.label for p in plain}
    written = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    assert len(written) == 80 and {name.split("/")[0] for name in written} <= {"red", "green"}
    _, edge, _, wide = load(model).preprocess.region(SIDE, SIDE + 16)
    assert edge > 7
    hits = 0
    for path, (top, left) in list(corners.items())[::5]:
        # the names of one class come from one folder only where all are right
        name = f"{labels[path]}/{path.split('/')[1]}"
        assert name in written
        if labels[path] != path.split("/")[0]:
            continue
        shown = np.asarray(Image.open(out / name))
        side = (shown.shape[1] - GAP) // 2
        image, overlaid = shown[:, :side], shown[:, -side:]
        scale = side / (SIDE + 16)
        assert image.shape == overlaid.shape and side == 224
        # outside of the middle square nothing was seen: it is dark
        assert (
            overlaid[:, : int(8 * scale) - 2].mean() < 0.5 * image[:, : int(8 * scale) - 2].mean()
        )
        inner = slice(int(8 * scale) + 2, int(40 * scale) - 2)
        far = brightness_of_colour(image, overlaid)[:, inner]
        row, column = np.unravel_index(far.argmax(), far.shape)
        row, column = row / scale, (column + inner.start) / scale
        hits += top - 4 <= row <= top + MARK + 4 and left - 4 <= column <= left + MARK + 4
    assert hits >= 12  # of 16; by chance about a third


def test_explaining_changes_neither_predictions_nor_the_model(run, tmp_path):
    data, model, _ = run
    before = {f: hashlib.sha256(f.read_bytes()).digest() for f in Path(model).rglob("*.*")}
    plain = predict(model, str(data))
    assert predict(model, str(data), explain=str(tmp_path / "a")) == plain
    assert {f: hashlib.sha256(f.read_bytes()).digest() for f in Path(model).rglob("*.*")} == before
    # the same with gradients off, frozen parameters and an array
    pixels = np.asarray(Image.open(data / "red/000.png"))
    with torch.inference_mode():
        predict(model, [pixels], explain=str(tmp_path / "b"), unknown=0.8)
    (file,) = (tmp_path / "b").rglob("*.png")
    assert file.name == "0.png" and file.parent.name in ("red", "green", "unknown")
    predict(model, str(data), explain=str(tmp_path / "c"), batch_size=7)
    for file in (tmp_path / "a").rglob("*.png"):
        again = tmp_path / "c" / file.relative_to(tmp_path / "a")
        assert file.read_bytes() == again.read_bytes()


def test_what_cannot_be_explained_is_refused(run, tmp_path, capsys):
    data, model, _ = run
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="name one folder"):
        predict(model, str(data), explain=str(out), sort_into=f"{out}{os.sep}")
    assert not out.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    for place in (tmp_path / "full", data / "new"):
        with pytest.raises(UsageError, match="explain"):
            predict(model, str(data), explain=str(place))
    assert not (data / "new").exists()


@pytest.mark.parametrize(
    ("preprocess", "size", "region"),
    [
        (Preprocess(32, 32), (32, 48), (0, 8, 32, 32)),
        (Preprocess(24, 32), (64, 96), (8, 24, 48, 48)),
        (Preprocess(32, 32, fit="squash"), (20, 60), (0, 0, 20, 60)),
        (Preprocess(32, 32, fit="pad"), (20, 60), (-20, 0, 60, 60)),
    ],
)
def test_the_map_lies_where_the_network_saw(preprocess, size, region):
    assert preprocess.region(*size) == region
    # a bright block in the image is in the network's input where the region says
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    row, column = height // 2 + 3, width // 2 - 5
    image[row - 2 : row + 3, column - 2 : column + 3] = 255
    seen = preprocess.pixels(image)[..., 0].astype(float)
    seen = np.where(seen > 200, seen, 0)
    rows, columns = np.indices(seen.shape)
    centre = [(places * seen).sum() / seen.sum() + 0.5 for places in (rows, columns)]
    top, left, high, wide = region
    assert top + centre[0] / seen.shape[0] * high == pytest.approx(row + 0.5, abs=1.5)
    assert left + centre[1] / seen.shape[1] * wide == pytest.approx(column + 0.5, abs=1.5)
    values = np.zeros((8, 8), np.float32)
    values[int(centre[0] / seen.shape[0] * 8), int(centre[1] / seen.shape[1] * 8)] = 1
    far = brightness_of_colour(image, overlay_map(image, values, region))
    inside = np.ones(size, bool)
    if preprocess.fit == "crop":
        inside[:, : max(0, left)] = inside[:, left + wide :] = False
    peak = np.unravel_index(np.where(inside, far, 0).argmax(), size)
    assert abs(peak[0] - row) <= high / 8 and abs(peak[1] - column) <= wide / 8
