"""Quantises an exported classifier, and measures what that costs in accuracy on real images."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.config.commands import EvaluateSettings, ExportSettings
from unfreeze.config.layering import read_run_config
from unfreeze.data.images.errors import Undecodable
from unfreeze.data.images.preprocess import Pixels
from unfreeze.errors import UsageError, WeightsError
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.int8 import INT8, onnx_inputs, quantize
from unfreeze.exports.to_onnx import FILE
from unfreeze.reports.intervals import wilson_interval
from unfreeze.reports.verdict import percent
from unfreeze.runs.eval_split import EvaluationSet, Positions, choose_evaluation_set
from unfreeze.runs.exporting.inputs import data_of_run
from unfreeze.runs.inference import readers_of
from unfreeze.runtime.console import Console
from unfreeze.runtime.utf8_path import utf8_path

CALIBRATION, EVALUATED = 128, 2000  # images at most


@dataclass(frozen=True)
class Int8Comparison:
    """The int8 file beside the float file, on the same `n` images of `split`.

    Intervals: 95 % (Wilson). `agreement`: share of images with the same class. `milliseconds`:
    median of one image at a time, on this machine. `calibrated_on`: number of images that set the
    ranges of the activations, none of them evaluated.
    """

    file: str
    calibrated_on: int
    n: int
    split: str
    accuracy: float
    interval: tuple[float, float]
    float_accuracy: float
    float_interval: tuple[float, float]
    agreement: float
    milliseconds: float
    float_milliseconds: float
    megabytes: float
    float_megabytes: float


def write_int8(
    subject: ExportedModel, chosen: EvaluationSet, folder: Path, console: Console
) -> Int8Comparison:
    """Write `model-int8.onnx` and compare it with the float file in `folder`.

    WeightsError if its accuracy is below the interval of the float file's.
    """
    calibration, evaluated = _portions(chosen)
    images = (image for _, image in _read(chosen, calibration, console))
    quantize(subject, folder, images)
    labels, classes, seconds = _run_both(chosen, evaluated, subject, folder, console)
    right, n = (classes == labels).sum(axis=1), len(labels)
    accuracies = [int(count) / n for count in right]
    intervals = [wilson_interval(int(count), n) for count in right]
    if accuracies[1] < intervals[0][0]:
        raise WeightsError(
            f"In int8 the accuracy on {n:,} images falls from {percent(accuracies[0])} (95 %: "
            f"{percent(intervals[0][0])} to {percent(intervals[0][1])}) to "
            f"{percent(accuracies[1])}; nothing was written.",
            "Omit --int8.",
        )
    float_ms, int8_ms = (1000 * float(np.median(row)) for row in seconds)
    sizes = [(folder / name).stat().st_size / 1e6 for name in (FILE, INT8)]
    return Int8Comparison(
        file=INT8,
        calibrated_on=len(calibration),
        n=n,
        split=chosen.split,
        accuracy=accuracies[1],
        interval=intervals[1],
        float_accuracy=accuracies[0],
        float_interval=intervals[0],
        agreement=float((classes[0] == classes[1]).mean()),
        milliseconds=int8_ms,
        float_milliseconds=float_ms,
        megabytes=sizes[1],
        float_megabytes=sizes[0],
    )


def labelled_images(s: ExportSettings, subject: ExportedModel) -> EvaluationSet:
    """The labelled images of `--data`, else those of the run; UsageError if they are not there."""
    data, labels = (s.data,) if s.data else data_of_run(s.run), dict[str, Any]()
    if data is None:
        raise UsageError(
            "--int8 needs labelled images, to calibrate and to compare accuracies; those of the "
            "run are not there.",
            "Add --data.",
        )
    if not s.data:
        config = read_run_config(Path(s.run) / "config.toml")
        names = ("labels", "label_column", "split_from")
        labels = {name: config[name] for name in names if config.get(name)}
    settings = EvaluateSettings(run=s.run, data=data, data_root=s.data_root, **labels)
    chosen = choose_evaluation_set(settings, subject.card)
    subject.preprocess.attach(chosen.index.source)
    return chosen


def _portions(chosen: EvaluationSet) -> tuple[Positions, Positions]:
    """(positions for calibration, positions to evaluate), without an image in both.

    Calibration: training images; without a record of them every fourth image.
    """
    others = np.setdiff1d(np.flatnonzero(chosen.labels >= 0), chosen.positions)
    trained = others[chosen.parts[others] == "train"]
    calibration = trained if len(trained) else others
    if not len(calibration):
        calibration = chosen.positions[::4]
    evaluated = np.setdiff1d(chosen.positions, calibration)
    if not len(evaluated):
        raise UsageError(
            f"--int8: {len(chosen.index):,} images are too few to calibrate and to compare.",
            "Give more labelled images with --data.",
        )
    return _spread(calibration, CALIBRATION), _spread(evaluated, EVALUATED)


def _spread(positions: Positions, count: int) -> Positions:
    """At most `count` of the positions, evenly spaced."""
    chosen = np.linspace(0, len(positions) - 1, min(count, len(positions))).astype(np.int64)
    return positions[chosen]


def _read(
    chosen: EvaluationSet, positions: Positions, console: Console
) -> Iterator[tuple[int, Pixels]]:
    """(position, pixels) of each image that can be read."""
    index = chosen.index.take(positions)
    for position, path, read in zip(
        positions.tolist(), index.paths, readers_of(index), strict=True
    ):
        try:
            image = read()
        except (OSError, Undecodable) as error:
            console.warn(f"left out: {path}: {error}")
            continue
        yield position, image


def _run_both(
    chosen: EvaluationSet,
    positions: Positions,
    subject: ExportedModel,
    folder: Path,
    console: Console,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels [N], classes [2, N] and seconds [2, N] of the float and the int8 file, alternating."""
    import onnxruntime

    sessions = []
    for name in (FILE, INT8):
        with utf8_path(folder / name) as path:
            cpu = ["CPUExecutionProvider"]
            sessions.append(onnxruntime.InferenceSession(str(path), providers=cpu))
    labels, classes, seconds = list[int](), list[list[int]](), list[list[float]]()
    with console.progress("images", len(positions)) as advance:
        for position, image in _read(chosen, positions, console):
            inputs = onnx_inputs(subject, image)
            labels.append(int(chosen.labels[position]))
            classes.append([])
            seconds.append([])
            for session in sessions:
                began = time.perf_counter()
                outputs = session.run(None, inputs)[0]
                seconds[-1].append(time.perf_counter() - began)
                classes[-1].append(int(outputs.ravel().argmax()))
            advance(1)
    if not labels:
        raise UsageError("--int8: none of the images can be read.", "Give others with --data.")
    return np.array(labels), np.array(classes).T, np.array(seconds).T
