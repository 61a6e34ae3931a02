"""The warnings of a run, from its data, metrics and scores."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.evaluation import checks
from unfreeze.evaluation.warnings import RunWarning, merge_latest
from unfreeze.runs.finetuning.data import LabelledDataset
from unfreeze.runs.finetuning.train import TrainedRun
from unfreeze.runs.pretraining.data import UnlabelledDataset
from unfreeze.runs.task_evaluation import undefined_metrics
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import WARNING, Console, pluralised
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.swav.collapse_detector import CollapseDetector, remedies_text
from unfreeze.training.feature_evaluation import FeatureEvaluator
from unfreeze.training.trainer import PretrainTrainer
from unfreeze.transfer.evaluate import TaskMetrics

FILE = "warnings.json"
# kinds of collapse
CODES = {"stuck": "nothing_learned", "diverged": "diverging", "shrunk": "constant_features"}


def data_warnings(dataset: LabelledDataset, *, choose: bool) -> list[RunWarning]:
    """Warnings before training; `choose`: whether the checkpoint is selected on val."""
    leaked, validation_images = int(dataset.leaked.sum()), len(dataset.val)
    return [
        *dataset.data_warnings,
        *checks.leakage_warning(leaked, validation_images, "val", None, None, texts=dataset.texts),
        *checks.few_validation_images(
            validation_images, choose=choose, classes=dataset.task is None
        ),
    ]


def finetune_warnings(
    run: RunFolder, dataset: LabelledDataset, run_result: TrainedRun
) -> list[RunWarning]:
    """Warnings after training: from metrics, scores, features and data."""
    job, chosen = run_result.job, run_result.outcome.best_epoch
    scores = None if isinstance(run_result.scores, TaskMetrics) else run_result.scores
    settings, classes = job.plan.settings, job.card.classes
    if job.task is not None:
        constant = checks.constant_features_warning(run_result.features)
        undefined = undefined_metrics(run_result.outcome.val_metrics)
        return constant + undefined + data_warnings(dataset, choose=chosen is not None)
    training = checks.training_losses(run.metrics())
    table = None if scores is None else np.array(scores.confusion)
    sizes = np.bincount(dataset.train.index.labels, minlength=len(classes))
    balanced = settings.sampling == "balanced"
    warnings = checks.constant_features_warning(run_result.features)
    warnings += checks.nothing_learned(
        len(classes),
        training,
        table,
        None if scores is None else scores.loss,
        majority=1 / len(classes) if balanced else float(sizes.max() / sizes.sum()),
        best_epoch=chosen,
        lr=settings.lr,
        frozen=settings.freeze == "all",
        solved=settings.head_solver == "logistic",
    )
    if training is not None:
        warnings += checks.diverging(len(classes), training.losses, training.images)
    if scores is None or table is None:
        return warnings + data_warnings(dataset, choose=False)
    warnings += checks.prediction_warnings(table, classes)
    clean = scores.accuracy_of(~dataset.leaked)
    leak = checks.leakage_warning(
        int(dataset.leaked.sum()), scores.n, "val", scores.accuracy, clean, texts=dataset.texts
    )
    return merge_latest(warnings, data_warnings(dataset, choose=chosen is not None), leak)


def pretrain_warnings(
    trainer: PretrainTrainer, s: PretrainSettings, dataset: UnlabelledDataset
) -> list[RunWarning]:
    """Warnings after pretraining: from the collapse detector and the data."""
    doubts = [*dataset.doubts, *checks.cropped_warning(dataset.sample.cropped)]
    return _collapse_warnings(trainer, s) + doubts if trainer.step else doubts


def _collapse_warnings(trainer: PretrainTrainer, s: PretrainSettings) -> list[RunWarning]:
    evaluator, detector = trainer.callback(FeatureEvaluator), trainer.callback(CollapseDetector)
    figures = evaluator.last.figures if evaluator and evaluator.last else None
    verdict = detector.at_end(trainer.step, figures) if detector else None
    if detector is None or verdict is None:
        return []
    if verdict.kind == "stuck" and evaluator is not None and _knn_improved(evaluator):
        return []
    if not s.base_lr:
        next_step = "The learning rate is 0. Omit --base-lr, or use a value above 0."
    elif trainer.step < checks.FEW_STEPS:
        count_text = pluralised(trainer.step, "step is", "steps are")
        next_step = f"{count_text} probably too few: increase --epochs."
    else:
        next_step = remedies_text(detector.remedies)
    message = f"Pretraining learned nothing useful: {verdict.diagnosis}. {next_step}"
    return [RunWarning(CODES[verdict.kind], message)]


def _knn_improved(evaluator: FeatureEvaluator) -> bool:
    """Whether k-NN accuracy is better than that of the untrained network."""
    if evaluator.start is None or evaluator.last is None or evaluator.start.knn is None:
        return False
    last = evaluator.last
    return checks.significantly_above(last.correct, last.total, evaluator.start.knn)


def show_warnings(warnings: Sequence[RunWarning], console: Console) -> None:
    """Show each on the console, and in the log."""
    for warning in warnings:
        console.warn(warning.message)


def show_result_warnings(
    warnings: Sequence[RunWarning], console: Console, *, json: bool, run: RunFolder | None = None
) -> None:
    """Log the warnings of a result; show them only with JSON, as the result's text has them."""
    if json:
        show_warnings(warnings, console)
    elif run is not None:
        for warning in warnings:
            run.log(f"{WARNING}: {warning.message}")


def write_warnings(warnings: Sequence[RunWarning], run: RunFolder) -> None:
    """Write warnings.json into the run folder, for the report."""
    write_json(run.file(FILE), [asdict(warning) for warning in warnings])
