"""Curves: which there are, and what is drawn."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from unfreeze.reports.curves import DARK, LIGHT, draw, smoothed
from unfreeze.reports.findings import read_findings
from unfreeze.reports.panels import Line, Panel, panels


def write_metrics(folder, records):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def opened(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_panels_of_a_pretraining(pretraining):
    shown = {panel.title: panel for panel in panels(read_findings(pretraining))}
    assert list(shown) == ["Loss", "Prototypes in use", "Learning rate"]
    assert shown["Loss"].level[0] == pytest.approx(math.log(64))
    assert shown["Learning rate"].lines[0].exact


def test_panels_of_a_transfer(finetuning):
    loss, accuracy = panels(read_findings(finetuning))
    assert [(line.name, line.faint) for line in loss.lines] == [("train", True), ("val", False)]
    assert (accuracy.title, accuracy.lines[0].y[-1]) == ("Accuracy (val)", pytest.approx(0.95))
    assert loss.level is None


def test_the_rates_that_were_tried_are_no_curve(bare):
    tried = [{"step": 0, "split": "find-lr", "loss": 10.0**n, "learning_rate": n} for n in range(3)]
    write_metrics(bare, [*tried, {"step": 1, "split": "train", "loss": 1.0, "learning_rate": 0.1}])
    assert [line.name for p in panels(read_findings(bare)) for line in p.lines] == ["train"] * 2


def test_a_k_nn_record_is_an_accuracy(bare):
    write_metrics(bare, [{"step": 5, "split": "val", "knn_accuracy": 0.4}])
    (panel,) = panels(read_findings(bare))
    assert [line.name for line in panel.lines] == ["k-NN"]


def test_the_demo_stands_first_with_its_spread(demonstration):
    first = panels(read_findings(demonstration))[0]
    assert [line.name for line in first.lines] == ["pixels", "scratch", "swav"]
    assert first.lines[2].x == [1, 5, 10]
    assert first.lines[2].spread == [0.03, 0.01, 0.004]


def test_what_is_no_number_is_not_drawn(bare):
    write_metrics(bare, [{"step": 1, "loss": math.nan}, {"step": 2, "loss": None}])
    assert panels(read_findings(bare)) == []


def test_smoothing_keeps_constants_and_ends_and_dense_starts():
    assert smoothed(range(100), [2.0] * 100) == pytest.approx([2.0] * 100)
    # a hundred dense points and then sparse ones: the sparse ones stand alone
    x = [*range(100), *range(1000, 20_000, 1000)]
    y = [1.0] * 100 + [float(v) for v in range(19)]
    assert smoothed(x, y)[100:] == pytest.approx(y[100:])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_panels_stand_in_a_grid(count):
    panel = Panel("Loss", [Line("train", [1, 2], [2, 1])], level=(4.16, "ln 64"))
    width, height = opened(draw([panel] * count)).size
    columns, rows = {1: (1, 1), 2: (2, 1), 3: (3, 1), 4: (2, 2), 5: (3, 2)}[count]
    assert (width, height) == (columns * 672, rows * 496)


@pytest.mark.parametrize(("theme", "paper"), [(LIGHT, (255, 255, 255)), (DARK, (22, 24, 27))])
def test_light_and_dark(theme, paper):
    pixels = np.asarray(opened(draw([Panel("Loss", [Line("val", [1, 2], [2, 1])])], theme)))
    assert tuple(pixels[0, 0]) == paper
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
