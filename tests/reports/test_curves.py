"""Curves: which there are, and what is drawn."""

import io
import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image

from unfreeze.reports.charts import Curve, PlotPanel, panels, resample_curve
from unfreeze.reports.curves import DARK, LIGHT, draw, ticks, y_limits
from unfreeze.reports.run_reader import read_run


def write_metrics(folder, records):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def opened(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_panels_of_a_pretraining(pretraining):
    shown = {panel.title: panel for panel in panels(read_run(pretraining))}
    assert list(shown) == ["Loss", "Prototypes in use", "Learning rate"]
    assert shown["Loss"].level[0] == pytest.approx(math.log(64))
    assert shown["Learning rate"].lines[0].y[-1] == 0.0


def test_panels_of_a_transfer(finetuning):
    loss, accuracy = panels(read_run(finetuning))
    assert [(line.name, line.faint) for line in loss.lines] == [("train", True), ("val", False)]
    assert (accuracy.title, accuracy.lines[0].y[-1]) == ("Accuracy (val)", pytest.approx(0.95))
    assert loss.level is None


def test_the_rates_that_were_tried_are_no_curve(bare):
    tried = [{"step": 0, "split": "find-lr", "loss": 10.0**n, "learning_rate": n} for n in range(3)]
    line = {"step": 1, "split": "train", "loss": 1.0, "learning_rate": 0.1}
    write_metrics(bare, [*tried, line, {**line, "step": 2}])
    assert [line.name for p in panels(read_run(bare)) for line in p.lines] == ["train"] * 2


def test_a_k_nn_record_is_an_accuracy_and_one_point_is_no_curve(bare):
    first = {"step": 0, "split": "val", "knn_accuracy": 0.3}
    write_metrics(bare, [first])
    assert panels(read_run(bare)) == []
    write_metrics(bare, [first, {**first, "step": 5, "knn_accuracy": 0.4}])
    (panel,) = panels(read_run(bare))
    assert (panel.title, [line.name for line in panel.lines]) == ("k-NN accuracy", ["k-NN"])
    assert "nearest neighbours" in panel.note


def test_the_demo_stands_first_with_its_spread(demonstration):
    first = panels(read_run(demonstration))[0]
    assert [line.name for line in first.lines] == ["pixels", "scratch", "swav"]
    assert first.lines[2].x == [1, 5, 10]
    assert first.lines[2].spread == [0.03, 0.01, 0.004]


def test_what_is_no_number_is_not_drawn(bare):
    write_metrics(bare, [{"step": 1, "loss": math.nan}, {"step": 2, "loss": None}])
    assert panels(read_run(bare)) == []


def test_curves_are_sampled_evenly_in_time():
    """A hundred dense records and then one each fifty steps: no step counts more than another."""
    x = [*range(1, 101), *range(150, 6001, 50)]
    xs, ys = resample_curve(x, [2.0 if step <= 100 else 1.0 for step in x])
    assert len(xs) <= 120 and sorted(xs) == xs
    assert max(b - a for a, b in itertools.pairwise(xs)) <= 100
    assert sum(y > 1.5 for y in ys) <= 3  # the noisy start is a fiftieth of the run
    xs, ys = resample_curve(range(10), [float(v) for v in range(10)])
    assert (xs, ys) == (list(range(10)), list(range(10)))
    assert resample_curve([3.0], [1.0]) == ([3.0], [1.0])


@pytest.mark.parametrize(
    ("values", "how", "reach"),
    [
        ([63.2, 62.8], {"shows": (0.0,), "level": (64.0, "all 64")}, (0, 64)),  # not a fall
        ([0.50, 0.51], {"span": 0.2, "low": 0.0, "high": 1.0}, (0.405, 0.605)),
        ([0.99, 1.00], {"span": 0.2, "low": 0.0, "high": 1.0}, (0.8, 1.0)),
        ([0.0, 0.9], {"span": 0.2, "low": 0.0, "high": 1.0}, (0.0, 0.9)),
        ([2.0, 2.0], {}, (1.0, 3.0)),
    ],
)
def test_axes_make_no_alarm_of_nothing(values, how, reach):
    panel = PlotPanel("p", [Curve("train", [0, 1], values)], **how)
    low, high = y_limits(panel)
    edge = 0.031 * (reach[1] - reach[0])
    assert (low, high) == pytest.approx(reach, abs=edge)


@pytest.mark.parametrize(
    ("low", "high", "share", "first", "unit"),
    [
        (62.8, 64.0, False, "63.0", ""),
        (0.0, 0.0002, False, "0.0", " (×10⁻⁴)"),
        (0.0, 8e-5, False, "0", " (×10⁻⁵)"),
        (0.0, 1.0, True, "0 %", ""),
        (0.0, 12_000.0, False, "0", ""),
        (0.0, 0.5, False, "0.0", ""),
    ],
)
def test_ticks_differ_from_each_other_and_have_the_same_digits(low, high, share, first, unit):
    places, words, power = ticks(low, high, share=share)
    assert len(set(words)) == len(words) >= 3 and power == unit
    assert first in words[0] and all(low <= place <= high for place in places)
    assert len({len(word.partition(".")[2]) for word in words}) == 1


def test_a_reliability_diagram_has_enough_images_behind_each_point(finetuning):
    path = finetuning / "evaluation.json"
    bins = [{"confidence": c / 10, "accuracy": c / 20, "n": 3} for c in range(1, 10)]
    path.write_text(json.dumps({**json.loads(path.read_text()), "calibration": bins}))
    panel = panels(read_run(finetuning))[-1]
    assert panel.title == "Reliability diagram" and len(panel.lines[1].x) == 2
    assert panel.lines[1].x[0] == pytest.approx(0.25) and panel.lines[0].faint


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_panels_stand_in_a_grid(count):
    panel = PlotPanel("Loss", [Curve("train", [1, 2], [2, 1])], level=(4.16, "ln 64"))
    width, height = opened(draw([panel] * count)).size
    columns, rows = {1: (1, 1), 2: (2, 1), 3: (3, 1), 4: (2, 2), 5: (3, 2)}[count]
    assert (width, height) == (columns * 672, rows * 496)


@pytest.mark.parametrize(("theme", "paper"), [(LIGHT, (255, 255, 255)), (DARK, (22, 24, 27))])
def test_light_and_dark(theme, paper):
    pixels = np.asarray(opened(draw([PlotPanel("Loss", [Curve("val", [1, 2], [2, 1])])], theme)))
    assert tuple(pixels[0, 0]) == paper
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
