"""The runs of `compare --weights tfidf`: TF-IDF on the texts, splits and seeds of the others."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.config.commands import TFIDF, EvaluateSettings
from unfreeze.config.finetune import TEXT_CLASSIFICATION
from unfreeze.data.index.index import VAL, Index
from unfreeze.data.index.splits import write_split_csv
from unfreeze.data.texts.checks import check_texts, similar_texts, texts_of
from unfreeze.evaluation import checks
from unfreeze.experiments.compare import CompareRunResult, EvaluatedRun
from unfreeze.experiments.compare_starts import CompareRun
from unfreeze.reports.intervals import wilson_interval
from unfreeze.runs.eval_split import choose_evaluation_set
from unfreeze.runs.finetuning.data import read_labels, split_options
from unfreeze.runs.finetuning.task_settings import text_columns
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.transfer.evaluate import ClassificationMetrics, classification_metrics
from unfreeze.transfer.texts.tfidf import STRENGTHS, TfidfModel, fit_tfidf
from unfreeze.transfer.train_val_split import TrainValSplit


def train_tfidf(spec: CompareRun, eval_data: dict[str, Any]) -> EvaluatedRun:
    """Fit on the training texts of a run's split and evaluate.

    `eval_data`: data and split for `evaluate`.
    """
    began, s = time.monotonic(), spec.settings
    listing = read_labels(s, QuietConsole())
    checked = check_texts(listing.index)
    alike = similar_texts(listing.index, checked.usable)
    portions = listing.split(checked.usable, split_options(s), alike)
    run = RunFolder.create(
        str(spec.folder), resume="auto" if spec.folder.exists() else None, overwrite=False
    )
    write_split_csv(run.file("split.csv"), portions.rows())
    classes = listing.index.classes
    train = listing.index.take(portions.train)
    model = fit_tfidf(_texts(train), train.labels.astype(np.int64), len(classes), s.seed)
    val = listing.index.take(portions.val)
    val_scores = _scores(model, val, torch.from_numpy(val.labels), classes) if len(val) else None
    index, labels, split = _evaluated(spec, eval_data, listing.index, portions)
    scores = _scores(model, index, labels, classes)
    table = np.array(scores.confusion)
    outcome = CompareRunResult(
        weights=TFIDF,
        seed=s.seed,
        run=str(spec.folder),
        arch=TFIDF,
        image_size=None,
        lr=None,
        tried=len(STRENGTHS),
        epochs=1,
        best_epoch=None,
        val_accuracy=None if val_scores is None else val_scores.accuracy,
        split=split,
        n=scores.n,
        accuracy=scores.accuracy,
        interval=wilson_interval(scores.correct, scores.n),
        balanced_accuracy=scores.balanced_accuracy,
        loss=scores.loss,
        leaked=None,
        accuracy_unleaked=None,
        test_uses=None,
        seconds=time.monotonic() - began,
        warnings=[
            *checks.nothing_learned(len(classes), None, table, scores.loss),
            *checks.prediction_warnings(table, classes),
        ],
    )
    return EvaluatedRun(outcome, list(index.paths), scores.right.tolist())


def _evaluated(
    spec: CompareRun, eval_data: dict[str, Any], index: Index, portions: TrainValSplit
) -> tuple[Index, Tensor, str]:
    """(texts to evaluate on, their labels, name of the split)."""
    s = spec.settings
    if eval_data["split"] == "val" and not len(index.where(VAL)):  # the run's own split
        own = index.take(np.sort(portions.val))
        return own, torch.from_numpy(own.labels), "val"
    columns = text_columns(s)
    card = ModelCard(
        "classifier",
        s.arch or TFIDF,
        classes=index.classes,
        task=TEXT_CLASSIFICATION,
        task_state={"columns": {"text": columns.text, "pair": columns.pair}},
    )
    settings = EvaluateSettings(run=str(Path(spec.folder)), **eval_data)
    chosen = choose_evaluation_set(settings, card)
    labels = torch.from_numpy(chosen.labels[chosen.positions])
    return chosen.index.take(chosen.positions), labels, chosen.split


def _texts(index: Index) -> list[str]:
    source = texts_of(index)
    return [source.read(row).decode("utf-8", "surrogatepass") for row in index.rows.tolist()]


def _scores(
    model: TfidfModel, index: Index, labels: Tensor, classes: tuple[str, ...]
) -> ClassificationMetrics:
    return classification_metrics(model.logits(_texts(index)), labels, classes)
