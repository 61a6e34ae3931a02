"""`predict --explain`, and the explained mistakes of an evaluation's report."""

import hashlib
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unfreeze.cli.main import main
from unfreeze.commands.embed import embed
from unfreeze.commands.evaluate import evaluate
from unfreeze.commands.finetune import finetune
from unfreeze.commands.predict import load, predict
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import DataError, UsageError
from unfreeze.reports.activation_overlay import GAP, overlay_map
from unfreeze.reports.examples import WRONG, read_examples
from unfreeze.reports.page import run_page
from unfreeze.reports.run_reader import read_run
from unfreeze.runs.explanations import explained_images
from unfreeze.runtime.console import QuietConsole

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
        outside = slice(0, int(edge * scale) - 2)
        assert overlaid[:, outside].mean() < 0.5 * image[:, outside].mean()
        inner = slice(int(edge * scale) + 2, int((edge + wide) * scale) - 2)
        far = brightness_of_colour(image, overlaid)[:, inner]
        row, column = np.unravel_index(far.argmax(), far.shape)
        row, column = row / scale, (column + inner.start) / scale
        hits += top - 4 <= row <= top + MARK + 4 and left - 4 <= column <= left + MARK + 4
    assert hits >= 12  # of 16; by chance about a third


def test_mistakes_have_maps_and_the_nearest_training_images(run, tmp_path):
    data, model, _ = run
    # other images with some labels wrong, beside the training images
    both = tmp_path / "both"
    shutil.copytree(data, both / "train")
    marked(both / "test", {"red": 6, "green": 6}, seed=9)
    for number in range(3):
        name = f"{number:03}.png"
        (both / "test/red" / name).rename(both / f"test/green/wrong{name}")
    done = evaluate(model, str(both))
    wrong = [mistake.path for mistake in done.mistakes]
    assert {f"test/green/wrong00{n}.png" for n in range(3)} <= set(wrong)
    examples = read_examples(Path(model) / "examples.npz")
    shown = [example for example in examples if example.kind == WRONG]
    assert [example.path for example in shown] == wrong
    assert not any(e.map or e.nearest for e in examples if e.kind != WRONG)
    # the reference: cosines of the features of `embed`, over the run's own training images
    embed(model, str(both), str(tmp_path / "f.npz"), precision="fp32")
    table = np.load(tmp_path / "f.npz")
    paths, features = table["paths"].tolist(), table["features"].astype(np.float64)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows = (Path(model) / "split.csv").read_text().splitlines()[1:]
    trained = {f"train/{row.split(',')[0]}" for row in rows if row.split(",")[-1] == "train"}
    assert 0 < len(trained) < 80
    places = [p for p, path in enumerate(paths) if path in trained]
    for example in shown:
        image = Image.open(io.BytesIO(example.map))
        assert image.size == (224, round(224 * SIDE / (SIDE + 16)))
        cosines = units[places] @ units[paths.index(example.path)]
        near = [cosines[[paths[p] for p in places].index(one.path)] for one in example.nearest]
        assert np.allclose(near, np.sort(cosines)[::-1][:3], atol=2e-3)  # stored as float16
        assert all(one.label == one.path.split("/")[1] for one in example.nearest)
        # labelled green, and red to the network: so are the images near it
        if "wrong" in example.path:
            assert example.predicted == "red" and [n.label for n in example.nearest] == ["red"] * 3
    html = run_page(read_run(model))
    assert html.count('<div class="near">') == len(shown) and "nearest training images" in html


def test_without_the_training_images_there_are_maps_alone(run, tmp_path):
    _, model, _ = run
    marked(tmp_path / "new", {"red": 3, "green": 3}, seed=11)
    (tmp_path / "new/red/000.png").rename(tmp_path / "new/green/wrong.png")
    shutil.copytree(model, tmp_path / "run")
    evaluate(str(tmp_path / "run"), str(tmp_path / "new"))
    shown = [e for e in read_examples(tmp_path / "run/examples.npz") if e.kind == WRONG]
    assert shown and all(example.map and not example.nearest for example in shown)
    html = run_page(read_run(str(tmp_path / "run")))
    assert "parts that speak for" in html and "nearest training images" not in html


def test_an_image_is_not_its_own_neighbour(run, tmp_path):
    data, model, _ = run
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(model, tmp_path / "run")
    # the same files under other labels: all are mistakes, and all were trained on
    (tmp_path / "data/red").rename(tmp_path / "data/x")
    (tmp_path / "data/green").rename(tmp_path / "data/red")
    (tmp_path / "data/x").rename(tmp_path / "data/green")
    done = evaluate(str(tmp_path / "run"), str(tmp_path / "data"), split="all")
    shown = [e for e in read_examples(tmp_path / "run/examples.npz") if e.kind == WRONG]
    assert len(shown) == 20 and done.accuracy < 0.2
    for example in shown:
        near = [one.path for one in example.nearest]
        assert len(set(near)) == 3 and example.path not in near


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


def test_a_file_that_is_gone_when_it_is_explained_is_named(run):
    _, model, _ = run
    classifier = load(model)
    pixels = np.zeros((20, 30, 3), np.uint8)

    def gone():
        raise FileNotFoundError(2, "No such file")

    made = explained_images(
        classifier, ["a.png", "b.png"], [lambda: pixels, gone], torch.tensor([0, 1]), QuietConsole()
    )
    with pytest.raises(DataError, match=r"b\.png was predicted, and can no longer be read"):
        list(made)
