"""Images of many channels through the verbs: chosen once, and kept with the model."""

import csv
import io
import json

import numpy as np
import pytest
import tifffile

import unfreeze
from unfreeze.cli.main import main
from unfreeze.runtime.terminal import Environment


def called(*words):
    """(exit code, the JSON document, what people were told)."""
    world = Environment(io.StringIO(), io.StringIO())
    code = main([*map(str, words), "--json"], world)
    text = world.stdout.getvalue()
    return code, json.loads(text) if text else None, world.stderr.getvalue()


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """Two classes that differ in the fifth of six channels alone; one file has but three."""
    root, draw = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    for name, level in (("forest", 500), ("water", 3000)):
        (root / name).mkdir()
        for number in range(10):
            values = draw.integers(900, 1100, (6, 16, 18))
            values[4] += level
            options = {"photometric": "minisblack", "planarconfig": "separate"}
            tifffile.imwrite(root / name / f"{number}.tif", values.astype(np.uint16), **options)
    few = draw.integers(0, 4000, (16, 18, 3)).astype(np.uint16)
    tifffile.imwrite(root / "water" / "few.tif", few, photometric="rgb")
    return root


@pytest.fixture(scope="module")
def runs(bands, tmp_path_factory):
    """A pretraining that chose channels, and a fine-tuning from it."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["--arch", "unfreeze/tiny", "--epochs", 0, "--device", "cpu"]
    code, _, told = called(
        "pretrain", bands, *words, "--channels", "4,4,4", "--out", folder / "first"
    )
    assert code == 0, told
    words = ["--weights", folder / "first", "--epochs", 6, "--augment", "none", "--lr", "0.05"]
    code, found, told = called("finetune", bands, *words, "--out", folder / "second")
    assert code == 0, told
    return folder / "first", folder / "second", found


def card(run):
    return json.loads((run / "model" / "model.json").read_text())["preprocess"]


def test_channels_go_from_the_run_to_the_next_and_into_the_model(runs):
    first, second, found = runs
    assert card(first)["intensity"] == card(second)["intensity"] == "0:16383@4,4,4"
    assert found["images"] == 16  # of 20 that have the channel
    for run in (first, second):
        with (run / "problems.csv").open(newline="") as file:
            assert [(row["path"], row["reason"]) for row in csv.DictReader(file)] == [
                ("water/few.tif", "channels")
            ]


def test_the_model_sees_the_channel_that_tells_them_apart(runs, bands):
    code, scores, _ = called("evaluate", runs[1], bands, "--split", "all")
    assert (code, scores["n"], scores["accuracy"]) == (0, 20, 1.0)
    found = unfreeze.predict(str(runs[1]), str(bands / "water" / "3.tif"))
    assert found[0].label == "water"


def test_scan_and_show_say_what_is_used(bands, tmp_path):
    code, found, _ = called("scan", bands)
    noted = {(p["reason"], p["detail"], p["left_out"]) for p in found["problems"]}
    assert (code, found["usable"]) == (0, 21)
    assert ("channels", "6 channels; only the first three are used", False) in noted
    shown = unfreeze.show(bands, out=str(tmp_path / "p.html"), channels=(5, 4, 3), scan="full")
    assert [one["path"] for one in shown.problems if one["left_out"]] == ["water/few.tif"]


def test_two_channels_make_no_image(bands, tmp_path):
    code, _, told = called("pretrain", bands, "--channels", "1,2", "--out", tmp_path / "r")
    assert code == 2 and "one or three numbers, not 2" in told
