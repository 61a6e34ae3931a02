"""What lies in the data beside its images, and images much longer than wide, in every verb."""

import io

import numpy as np
import pytest
from PIL import Image

import unfreeze
from unfreeze.cli.main import main
from unfreeze.runtime.terminal import Environment

TINY = {"arch": "unfreeze/tiny", "weights": "none", "image_size": 16, "epochs": 1, "workers": 0}
FEW = ["--arch", "unfreeze/tiny", "--image-size", "16", "--workers", "0", "--dry-run"]


@pytest.fixture(scope="module")
def run(colours, tmp_path_factory):
    """(data, the run inside of it): with an image, as a run's folder may have."""
    data = colours(tmp_path_factory.mktemp("inside") / "data", {"red": 6, "green": 6})
    run = unfreeze.finetune(str(data), out=str(data / "runs" / "first"), **TINY).run
    Image.new("RGB", (20, 20)).save(data / "runs" / "first" / "curves.png")
    return data, run


def told(*words):
    """(exit code, what people were told)."""
    world = Environment(io.StringIO(), io.StringIO())
    code = main([*map(str, words)], world)
    return code, " ".join(world.stderr.getvalue().split())


def test_a_run_inside_the_data_is_no_class_in_any_verb(run, tmp_path):
    data, model = run
    for words in (
        ("finetune", data, *FEW, "--weights", "none"),
        ("pretrain", data, *FEW, "--batch-size", "4"),
        ("scan", data),
        ("predict", model, data),
    ):
        code, said = told(*words)
        assert code == 0, said
        assert said.count("A folder written by unfreeze is ignored: runs/first.") == 1, words
    assert unfreeze.finetune(str(data), dry_run=True, **TINY).classes == ["green", "red"]
    assert unfreeze.scan(str(data)).pictures == 12
    shown = unfreeze.show(str(data), str(tmp_path / "data.html"))
    assert shown.images == 12 and any("runs/first" in note for note in shown.notes)
    assert len(unfreeze.predict(model, str(data))) == 12
    assert unfreeze.embed(model, str(data), out=str(tmp_path / "f.npz")).images == 12
    assert unfreeze.evaluate(model, str(data), split="all").n == 12


def test_long_images_are_named_with_their_count(run, tmp_path):
    _, model = run
    draw = np.random.default_rng(0)
    for label in ("green", "red"):
        (tmp_path / label).mkdir()
        for number in range(6):
            size = (20, 60, 3) if number < 2 else (20, 24, 3)
            pixels = draw.integers(0, 256, size, np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    said = "warning: 4 of 12 images are much wider than a square (up to 3.0 to 1)"
    for words in (
        ("finetune", tmp_path, *FEW, "--weights", "none"),
        ("pretrain", tmp_path, *FEW, "--batch-size", "4"),
        ("scan", tmp_path),
        ("predict", model, tmp_path),
    ):
        code, heard = told(*words)
        assert (code, heard.count(said)) == (0, 1), f"{words}: {heard}"
    assert [one["code"] for one in unfreeze.scan(str(tmp_path)).warnings] == ["cropped_away"]
