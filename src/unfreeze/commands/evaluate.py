"""`evaluate`: metrics of a model on labelled images, with intervals and leakage checks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfreeze.checkpoints.model_file import model_folder, read_card, write_card
from unfreeze.commands.report import write_report_or_warn
from unfreeze.config.commands import EvaluateSettings
from unfreeze.config.finetune import TEXT_CLASSIFICATION
from unfreeze.config.layering import load_settings
from unfreeze.config.shared import Data, data_name
from unfreeze.data.texts.preprocess import truncated_share
from unfreeze.data.validate.warnings import dataset_warnings
from unfreeze.errors import DataError, UsageError
from unfreeze.evaluation import checks
from unfreeze.evaluation.calibration import (
    COLDEST,
    HOTTEST,
    CalibrationBin,
    apply_temperature,
    fit_temperature,
)
from unfreeze.evaluation.warnings import RunWarning
from unfreeze.reports.examples import ARRAYS
from unfreeze.reports.examples import FILE as EXAMPLES
from unfreeze.reports.intervals import balanced, wilson_interval
from unfreeze.reports.results_models import evaluate_display
from unfreeze.runs.eval_split import (
    EvaluationSet,
    choose_evaluation_set,
    classifiers_to_evaluate,
    last_epoch,
)
from unfreeze.runs.explanations import Explanation, explain_mistakes
from unfreeze.runs.inference import readers_of
from unfreeze.runs.model_outputs import ModelOutputs, model_outputs
from unfreeze.runs.prediction_files import (
    COLUMNS,
    EvaluatedPredictions,
    PredictedImage,
    predictions_of,
)
from unfreeze.runs.python_call import python_call
from unfreeze.runs.run_warnings import show_result_warnings
from unfreeze.runs.task_evaluation import TaskEvaluation, evaluate_task
from unfreeze.runs.test_set_usage import count_test_uses, record_test_use, run_folder
from unfreeze.runs.unknown_evaluation import (
    UnknownEvaluation,
    evaluate_unknown,
    stored_known_images,
)
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import Console, printable
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.output_files import is_csv_with, is_json_with, is_npz_with, refuse_foreign
from unfreeze.transfer.evaluate import ClassificationMetrics, ClassMetrics, classification_metrics
from unfreeze.transfer.predictor import (
    Classifier,
)

# files that an evaluation writes into the run folder, with checks before they are overwritten
WRITTEN = {
    "evaluation.json": is_json_with("n", "split", "accuracy"),
    "predictions.csv": is_csv_with(COLUMNS),
    "mistakes.csv": is_csv_with(COLUMNS),
    EXAMPLES: is_npz_with(*ARRAYS),
}


@dataclass(frozen=True)
class LastEpochScores:
    """ClassificationMetrics of the weights of the last epoch on the same images, for comparison."""

    epoch: int
    accuracy: float
    interval: tuple[float, float]
    balanced_accuracy: float
    loss: float


@dataclass(frozen=True)
class TemperatureScaling:
    """A temperature fitted on `n` validation images, and the calibration it gives.

    `loss`, `calibration_error`: of the evaluated images at this temperature. `bounded`: the fit
    ended at a bound (as when all validation images are right), so the value is not reliable.
    """

    value: float
    n: int
    bounded: bool
    loss: float
    calibration_error: float
    kept: bool


@dataclass(frozen=True, repr=False)
class Evaluation(Displayed):
    """Scores on `n` images of `split`; `confusion`: rows are labels, columns predictions.

    `interval`, `balanced_interval`: 95 % (Wilson, MOVER). `seen_in_training`: number of images that
    the run trained on. `leaked`: number with a duplicate or near-duplicate in the training set
    (data leakage); `accuracy_unleaked`: on the others. Both are None if the model has no record of
    its training images, the second also if all are leaked. `used_for_choosing`: whether the run
    selected its checkpoint on these images. `test_uses`: number of evaluations of the run on test
    images, this one included; None without a run folder. `epoch`: of the weights, from 0; None if
    unknown. `calibration_error`: expected calibration error over the bins of `calibration`.
    `mistakes`: those with the highest confidence. `warnings`: see `RunWarning`. `run`: the run
    folder with predictions.csv and the other files; None for a model alone. `answered`: share of
    images that `predict --unknown` answers; `accuracy_answered`: on these; `coverage`: share of
    images whose set holds the label; `set_size`: mean size of a set; see `UnknownEvaluation`.
    """

    n: int
    split: str
    seen_in_training: int
    leaked: int | None
    used_for_choosing: bool
    test_uses: int | None
    epoch: int | None
    accuracy: float
    accuracy_unleaked: float | None
    interval: tuple[float, float]
    balanced_accuracy: float
    balanced_interval: tuple[float, float]
    macro_f1: float
    top5: float
    loss: float
    calibration_error: float
    calibration: list[CalibrationBin]
    temperature: TemperatureScaling | None
    last: LastEpochScores | None
    classes: list[str]
    confusion: list[list[int]]
    per_class: list[ClassMetrics]
    mistakes: list[PredictedImage]
    warnings: list[RunWarning]
    run: str | None = None
    answered: float | None = None
    accuracy_answered: float | None = None
    coverage: float | None = None
    set_size: float | None = None
    unknown: UnknownEvaluation | None = None

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return evaluate_display(self, self.run)

    def rows(self) -> list[dict[str, Any]]:
        """One row per class: its scores, and its row of the confusion matrix."""
        return [
            {
                **asdict(classification_metrics),
                **{f"predicted {c}": n for c, n in zip(self.classes, row, strict=True)},
            }
            for classification_metrics, row in zip(self.per_class, self.confusion, strict=True)
        ]


@dataclass(frozen=True, repr=False)
class TextEvaluation(Evaluation):
    """Scores on texts; `truncated`: share of them that were cut."""

    task: str = TEXT_CLASSIFICATION
    truncated: float = 0.0


@python_call(EvaluateSettings)
def evaluate(
    run: str | PathLike[str], data: Data, *, progress: bool | None = None, **settings: Any
) -> Evaluation | TaskEvaluation:
    """Evaluate a run's model on `data`: on test, else val, else held-out images, else all.

    Returns a `TaskEvaluation` for a model of another task than classification. DataError for a
    class that the model does not know.
    """
    values = {"run": str(run), "data": data, **settings}
    return run_evaluate(load_settings(EvaluateSettings, values), python_console(progress))


@isolated()
def run_evaluate(settings: EvaluateSettings, console: Console) -> Evaluation | TaskEvaluation:
    """The same from a settings object.

    Also writes evaluation.json, predictions.csv, mistakes.csv, test_uses.json and the report into
    the run folder.
    """
    if model_folder(settings.run) is not None and read_card(settings.run).kind == "predictor":
        result = evaluate_task(settings, console)
        show_result_warnings(result.warnings, console, json=settings.json)
        if result.run is not None:
            write_report_or_warn(result.run, console)
        return result
    evaluation = evaluate_with_predictions(settings, console)[0]
    show_result_warnings(evaluation.warnings, console, json=settings.json)
    if evaluation.run is not None:
        write_report_or_warn(evaluation.run, console)
    return evaluation


def evaluate_with_predictions(
    settings: EvaluateSettings, console: Console
) -> tuple[Evaluation, EvaluatedPredictions]:
    """The scores, and the prediction for each image."""
    s, folder = settings, run_folder(settings.run)
    for name, check in WRITTEN.items():
        if folder is not None:  # check before the evaluation, not after
            refuse_foreign("evaluate:", folder / name, check)
    best, last = classifiers_to_evaluate(s.run, folder, s.weights_of)
    eval_set = choose_evaluation_set(s, best.card)
    best.preprocess.attach(eval_set.index.source)
    known = stored_known_images(s.run, best.card, last_epoch=s.weights_of == "last")
    networks = [best, *([last] if last else [])]
    outputs = model_outputs(s, eval_set, eval_set.positions, networks, console, known)
    readable, logits = outputs.kept, apply_temperature(outputs.logits[0], best.card.temperature)
    labels = torch.from_numpy(eval_set.labels[eval_set.positions[readable]])
    evaluation = _evaluation(
        eval_set, best, classification_metrics(logits, labels, best.classes), outputs
    )
    unknown = evaluate_unknown(
        known,
        outputs.logits[0],
        outputs.scores,
        labels.numpy(),
        eval_set.parts[eval_set.positions[readable]],
        temperature=best.card.temperature,
        level=s.unknown,
    )
    evaluation = replace(evaluation, unknown=unknown, **unknown.figures())
    if s.temperature != "off":
        fitted = _temperature(s, eval_set, best, outputs.logits[0], labels, console)
        evaluation = replace(evaluation, temperature=fitted)
    if last is not None:
        evaluation = replace(
            evaluation,
            last=_last_scores(
                last, classification_metrics(outputs.logits[1], labels, best.classes)
            ),
        )
    index = eval_set.index.take(eval_set.positions[readable])
    shown = [] if index.source.noun == "text" else readers_of(index)
    predictions = predictions_of(index.paths, shown, best.classes, labels.numpy(), logits)
    evaluation = replace(evaluation, mistakes=predictions.worst())
    if folder is None:
        return evaluation, predictions
    wrong = predictions.shown_mistakes()
    reads, names = [shown[p] for p in wrong], [predictions.each[p].predicted for p in wrong]
    why = explain_mistakes(best, known, eval_set, readable[wrong], reads, names, console)
    explained = dict(zip(wrong, why, strict=True))
    return _write(s, folder, evaluation, predictions, explained, eval_set, console), predictions


def _warnings(
    eval_set: EvaluationSet,
    network: Classifier,
    scores: ClassificationMetrics,
    outputs: ModelOutputs,
    leaked: npt.NDArray[np.bool_],
) -> list[RunWarning]:
    table, count = np.array(scores.confusion), int(leaked.sum())
    clean, classes = scores.accuracy_of(~leaked), network.classes
    return [
        *checks.constant_features_warning(outputs.features),
        *checks.nothing_learned(len(classes), None, table, scores.loss),
        *checks.prediction_warnings(table, classes),
        *checks.leakage_warning(
            count,
            scores.n,
            eval_set.split,
            scores.accuracy,
            clean,
            texts=network.preprocess.fit == "text",
        ),
        *(
            checks.few_validation_images(scores.n, choose=True)
            if eval_set.used_for_choosing
            else ()
        ),
        *(RunWarning(code, message) for code, message in dataset_warnings(eval_set.index)),
        *checks.cropped_warning(outputs.cropped),
    ]


def _evaluation(
    eval_set: EvaluationSet,
    network: Classifier,
    scores: ClassificationMetrics,
    outputs: ModelOutputs,
) -> Evaluation:
    selected = network.card.provenance.get("best_epoch")
    leak_mask = eval_set.leaked(outputs.kept, outputs.signatures)
    leaked = np.zeros(scores.n, bool) if leak_mask is None else leak_mask
    hits = [(row[index], sum(row)) for index, row in enumerate(scores.confusion)]
    evaluation = Evaluation(
        n=scores.n,
        split=eval_set.split,
        seen_in_training=eval_set.seen(outputs.kept),
        leaked=None if leak_mask is None else int(leak_mask.sum()),
        used_for_choosing=eval_set.used_for_choosing,
        test_uses=None,
        epoch=last_epoch(network.card) if selected is None else selected,
        accuracy=scores.accuracy,
        accuracy_unleaked=None if leak_mask is None else scores.accuracy_of(~leak_mask),
        interval=wilson_interval(scores.correct, scores.n),
        balanced_accuracy=scores.balanced_accuracy,
        balanced_interval=balanced(hits),
        macro_f1=scores.macro_f1,
        top5=scores.top5,
        loss=scores.loss,
        calibration_error=scores.calibration_error,
        calibration=scores.calibration,
        temperature=None,
        last=None,
        classes=list(network.classes),
        confusion=scores.confusion,
        per_class=scores.per_class,
        mistakes=[],
        warnings=_warnings(eval_set, network, scores, outputs, leaked),
    )
    texts = eval_set.index.take(eval_set.positions)
    if (share := truncated_share(texts, network.preprocess)) is not None:
        return TextEvaluation(**vars(evaluation), truncated=share)
    return evaluation


def _last_scores(network: Classifier, scores: ClassificationMetrics) -> LastEpochScores:
    return LastEpochScores(
        epoch=network.card.provenance["epochs"] - 1,
        accuracy=scores.accuracy,
        interval=wilson_interval(scores.correct, scores.n),
        balanced_accuracy=scores.balanced_accuracy,
        loss=scores.loss,
    )


def _temperature(
    s: EvaluateSettings,
    eval_set: EvaluationSet,
    network: Classifier,
    logits: Tensor,
    labels: Tensor,
    console: Console,
) -> TemperatureScaling:
    """Fit the temperature on validation images; with `keep` write it to model.json."""
    if s.temperature == "keep" and s.weights_of == "last":
        raise UsageError(
            "--temperature keep needs the selected epoch, whose weights model/ holds.",
            "Use --temperature fit, or omit --weights-of.",
        )
    if not len(eval_set.held_out):
        raise DataError(
            f"{data_name(s.data)} has no validation images to fit the temperature on.",
            "Give the training data, or omit --temperature.",
        )
    outputs = model_outputs(s, eval_set, eval_set.held_out, [network], console)
    labelled = torch.from_numpy(eval_set.labels[eval_set.held_out[outputs.kept]])
    value = fit_temperature(outputs.logits[0], labelled)
    after = classification_metrics(apply_temperature(logits, value), labels, network.classes)
    if s.temperature == "keep":
        folder = model_folder(s.run)
        if folder is not None:
            write_card(folder, replace(network.card, temperature=value))
    return TemperatureScaling(
        value=value,
        n=len(outputs.kept),
        bounded=value in (COLDEST, HOTTEST),
        loss=after.loss,
        calibration_error=after.calibration_error,
        kept=s.temperature == "keep",
    )


def _write(
    s: EvaluateSettings,
    folder: Path,
    evaluation: Evaluation,
    predictions: EvaluatedPredictions,
    explained: Mapping[int, Explanation],
    eval_set: EvaluationSet,
    console: Console,
) -> Evaluation:
    """The evaluation with its count of test uses; writes it into the run folder."""
    candidates = (Path(s.run), *Path(s.run).parents)  # as given: shorter than the absolute path
    run = next((str(path) for path in candidates if path.absolute() == folder), str(folder))
    uses = count_test_uses(folder) + eval_set.is_test
    evaluation = replace(evaluation, test_uses=uses)
    try:
        if eval_set.is_test:
            uses = record_test_use(
                folder, data=data_name(s.data), split=eval_set.split, n=evaluation.n
            )
            evaluation = replace(evaluation, test_uses=uses)
        worst = [replace(mistake, path=printable(mistake.path)) for mistake in evaluation.mistakes]
        write_json(folder / "evaluation.json", asdict(replace(evaluation, mistakes=worst)))
        predictions.write(folder, explained)
        evaluation = replace(evaluation, run=run)
    except OSError as error:  # the run may be read-only: the result is still returned
        why = error.strerror or "it is locked by another evaluation"
        console.warn(f"evaluation.json could not be written to {folder}: {why}.")
    return evaluation
