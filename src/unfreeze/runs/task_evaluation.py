"""Evaluation of a model of a task other than classification."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfreeze.config.commands import EvaluateSettings
from unfreeze.config.shared import data_name
from unfreeze.errors import UsageError
from unfreeze.evaluation import checks
from unfreeze.evaluation.warnings import RunWarning
from unfreeze.reports.results_models import task_evaluation_display
from unfreeze.runs.eval_split import EvaluationSet, Positions, choose_evaluation_set
from unfreeze.runs.inference import Signed, on_device, readers_of, run_inference
from unfreeze.runs.mask_examples import write_mask_examples
from unfreeze.runs.prediction_files import write_predictions
from unfreeze.runs.test_set_usage import count_test_uses, record_test_use, run_folder
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import Console
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.output_files import is_csv_with, is_json_with, refuse_foreign
from unfreeze.tasks.segmentation.task import SegmentationTask
from unfreeze.tasks.supervised import SupervisedTask
from unfreeze.transfer.evaluate import task_metrics
from unfreeze.transfer.predictor import TaskModel, load_task_model
from unfreeze.transfer.validation import MAPS_BATCH

RESAMPLES = 1000  # of the bootstrap
CHUNK = 50  # of them at once


@dataclass(frozen=True, repr=False)
class TaskEvaluation(Displayed):
    """Metrics of a task on `n` images of `split`, by name.

    `intervals`: 95 %, by a bootstrap over the images; None where a metric has no value in some
    resamples. `seen_in_training`, `leaked`, `used_for_choosing`, `test_uses`, `warnings`: as in
    `Evaluation`. `run`: the run folder with predictions.csv; None for a model alone. `details`:
    what the task adds, such as a metric of each class.
    """

    task: str
    n: int
    split: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    loss: float
    seen_in_training: int
    leaked: int | None
    used_for_choosing: bool
    test_uses: int | None
    warnings: list[RunWarning]
    run: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def more_fields(self) -> Mapping[str, Any]:
        """The metrics and details by name, and `interval`, that of the task's first metric."""
        interval = next(iter(self.intervals.values()), None)
        return {**self.metrics, "interval": interval, **self.details}

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return task_evaluation_display(self)


class EvaluatedOutputs(NamedTuple):
    """The images that could be read: paths, labels, positions, and what the metrics need.

    `outputs`, `targets`: as in the task's `metrics`.
    """

    paths: list[str]
    labels: list[str]
    kept: Positions
    outputs: Tensor
    targets: Tensor


def evaluate_task(s: EvaluateSettings, console: Console) -> TaskEvaluation:
    """Evaluate the model of `s.run`; writes evaluation.json and predictions.csv into its folder."""
    return evaluate_task_with_predictions(s, console)[0]


def evaluate_task_with_predictions(
    s: EvaluateSettings, console: Console
) -> tuple[TaskEvaluation, EvaluatedOutputs]:
    """The same, with what the metrics are computed from."""
    if s.temperature != "off":
        raise UsageError("--temperature is for classification.", "Omit it.")
    if s.weights_of == "last":
        raise UsageError("--weights-of last is for classification.", "Omit it.")
    folder, model = run_folder(s.run), load_task_model(s.run)
    model.task.configure(s)
    if folder is not None:  # check before the evaluation, not after
        columns = is_csv_with(("path", "label", *model.columns[1:]))
        refuse_foreign("evaluate:", folder / "evaluation.json", is_json_with("n", "split", "loss"))
        refuse_foreign("evaluate:", folder / "predictions.csv", columns)
    model = on_device(model, s.device, s.precision)
    eval_set = choose_evaluation_set(s, model.card, model.task)
    model.preprocess.attach(eval_set.index.source)
    evaluation, predictions = _evaluate(model, eval_set, s.batch_size, console)
    if folder is None:
        return evaluation, predictions
    evaluation = replace(evaluation, test_uses=count_test_uses(folder), run=str(s.run))
    try:
        if eval_set.is_test:
            uses = record_test_use(
                folder, data=data_name(s.data), split=eval_set.split, n=evaluation.n
            )
            evaluation = replace(evaluation, test_uses=uses)
        write_json(folder / "evaluation.json", {**asdict(evaluation), **evaluation.more_fields()})
        rows = model.task.predict(predictions.outputs)
        cells = [model.task.cells(row) for row in rows]
        write_predictions(folder / "predictions.csv", predictions.paths, predictions.labels, cells)
        if isinstance(model.task, SegmentationTask):
            index = eval_set.index.take(eval_set.positions[predictions.kept])
            write_mask_examples(
                folder,
                model,
                model.task,
                predictions.paths,
                readers_of(index),
                model.task.targets(predictions.labels).tolist(),
                [row["miou"] for row in rows],
            )
    except OSError as error:  # the run may be read-only: the result is still returned
        console.warn(f"evaluation.json could not be written to {folder}: {error.strerror}.")
    return evaluation, predictions


def _evaluate(
    model: TaskModel, eval_set: EvaluationSet, batch_size: int, console: Console
) -> tuple[TaskEvaluation, EvaluatedOutputs]:
    task, index = model.task, eval_set.index.take(eval_set.positions)
    signed = Signed(readers_of(index))
    labels = [index.classes[label] for label in index.labels.tolist()]
    if task.dense:  # masks that do not fit their images
        task.check(index)
    all_targets = task.targets(labels)
    outputs = run_inference(
        model,
        index.paths,
        signed.reads,
        batch_size=MAPS_BATCH if task.dense else batch_size,
        console=console,
        keep=lambda batch, positions: task.summarize(batch, all_targets[positions]),
    )
    kept, targets = outputs.kept, all_targets[outputs.kept]
    scores = task_metrics(task, outputs.values, targets)
    leaked = eval_set.leaked(kept, signed.signatures[kept])
    count = 0 if leaked is None else int(leaked.sum())
    few = list[RunWarning]()
    if eval_set.used_for_choosing:
        few = checks.few_validation_images(scores.n, choose=True, classes=False)
    evaluation = TaskEvaluation(
        task=model.card.task,
        n=scores.n,
        split=eval_set.split,
        metrics=scores.values,
        intervals=bootstrap_intervals(task, outputs.values, targets),
        loss=scores.loss,
        seen_in_training=eval_set.seen(kept),
        leaked=None if leaked is None else count,
        used_for_choosing=eval_set.used_for_choosing,
        test_uses=None,
        details=task.details(outputs.values, targets),
        warnings=[
            *checks.leakage_warning(count, scores.n, eval_set.split, None, None),
            *few,
            *checks.cropped_warning(None if task.dense else outputs.cropped),
            *undefined_metrics(scores.values),
        ],
    )
    paths = index.take(kept).paths
    known_labels = [labels[position] for position in kept.tolist()]
    return evaluation, EvaluatedOutputs(paths, known_labels, kept, outputs.values, targets)


def undefined_metrics(values: Mapping[str, float]) -> list[RunWarning]:
    """A warning that names the metrics that are NaN or infinite."""
    names = [name for name, value in values.items() if not math.isfinite(value)]
    if not names:
        return []
    message = (
        f"{', '.join(names)} cannot be computed on these images: the value is NaN or infinite."
    )
    return [RunWarning("undefined_metric", f"{message} Check that the labels differ.")]


def bootstrap_intervals(
    task: SupervisedTask, outputs: Tensor, targets: Tensor
) -> dict[str, tuple[float, float] | None]:
    """95 % interval of each metric: percentiles over resamples of the images."""
    resampled = resampled_metrics(task, outputs, targets)
    return {name: _interval(values) for name, values in resampled.items()}


def resampled_metrics(
    task: SupervisedTask, outputs: Tensor, targets: Tensor, *, seed: int = 0
) -> dict[str, npt.NDArray[np.float64]]:
    """Each metric in RESAMPLES bootstrap resamples of the images.

    The resamples depend on `seed` and the number of images alone: those of two models on the same
    images are paired.
    """
    draw, values = np.random.default_rng(seed), dict[str, list[float]]()
    for _ in range(RESAMPLES // CHUNK):
        drawn = draw.multinomial(len(outputs), [1 / len(outputs)] * len(outputs), CHUNK)
        sums = task.resampled(outputs, torch.from_numpy(drawn))
        if sums is None:
            break
        for row in sums:
            for name, value in task.metrics(row[None], targets[:1]).items():
                values.setdefault(name, []).append(float(value))
    if not values:
        draw = np.random.default_rng(seed)
        for _ in range(RESAMPLES):
            rows = torch.from_numpy(draw.integers(0, len(outputs), len(outputs)))
            for name, value in task.metrics(outputs[rows], targets[rows]).items():
                values.setdefault(name, []).append(float(value))
    return {name: np.array(drawn) for name, drawn in values.items()}


def _interval(values: Any) -> tuple[float, float] | None:
    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
