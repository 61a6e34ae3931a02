"""The warnings of a run, from its data, metrics and scores."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from unfreeze.api.gathering import Gathering
from unfreeze.api.labelling import Checked
from unfreeze.api.single import Tuned
from unfreeze.evaluation import checks
from unfreeze.evaluation.warnings import RunWarning, latest
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import WARNING, Console, worded
from unfreeze.runtime.runfolder import RunFolder
from unfreeze.swav.collapse import advice
from unfreeze.swav.remedies import remedies
from unfreeze.swav.trainer import Trainer
from unfreeze.swav.watching import Watch

FILE = "warnings.json"
# kinds of collapse
CODES = {"stuck": "nothing_learned", "diverged": "diverging", "shrunk": "constant_features"}


def data_warnings(ready: Checked, *, choose: bool) -> list[RunWarning]:
    """Warnings before training; `choose`: whether the checkpoint is selected on val."""
    leaked, held = int(ready.leaked.sum()), len(ready.val)
    return [
        *ready.data_warnings,
        *checks.leakage(leaked, held, "val", None, None),
        *checks.few_validation_images(held, choose=choose),
    ]


def finetune_warnings(run: RunFolder, ready: Checked, made: Tuned) -> list[RunWarning]:
    """Warnings after training: from metrics, scores, features and data."""
    job, scores, chosen = made.job, made.scores, made.outcome.best_epoch
    settings, classes = job.plan.settings, job.card.classes
    trained = checks.training(run.metrics())
    table = None if scores is None else np.array(scores.confusion)
    sizes = np.bincount(ready.train.index.labels, minlength=len(classes))
    even = settings.sampling == "balanced"
    found = checks.constant_features(made.features)
    found += checks.nothing_learned(
        len(classes),
        trained,
        table,
        None if scores is None else scores.loss,
        majority=1 / len(classes) if even else float(sizes.max() / sizes.sum()),
        best_epoch=chosen,
        lr=settings.lr,
        frozen=settings.freeze == "all",
        solved=settings.head_solver == "logistic",
    )
    if trained is not None:
        found += checks.diverging(len(classes), trained.losses, trained.images)
    if scores is None or table is None:
        return found + data_warnings(ready, choose=False)
    found += checks.predictions(table, classes)
    clean = scores.accuracy_of(~ready.leaked)
    leak = checks.leakage(int(ready.leaked.sum()), scores.n, "val", scores.accuracy, clean)
    return latest(found, data_warnings(ready, choose=chosen is not None), leak)


def pretrain_warnings(trainer: Trainer, found: Gathering) -> list[RunWarning]:
    """Warnings after pretraining: from the collapse detector and the data."""
    doubts = [*found.doubts, *checks.cropped_warning(found.sample.cropped)]
    return _of_pretraining(trainer) + doubts if trainer.step else doubts


def _of_pretraining(trainer: Trainer) -> list[RunWarning]:
    watch, plan = trainer.watch, trainer.plan
    verdict = trainer.guard.at_end(trainer.step, watch.last.figures if watch.last else None)
    if verdict is None or (verdict.kind == "stuck" and _knows_more(watch)):
        return []
    if not trainer.s.base_lr:
        next_step = "The learning rate is 0. Omit --base-lr, or use a value above 0."
    elif trainer.step < checks.FEW_STEPS:
        few = worded(trainer.step, "step is", "steps are")
        next_step = f"{few} probably too few: increase --epochs."
    else:
        images = len(trainer.loader.positions)
        tries = remedies(trainer.s, steps_per_epoch=plan.steps_per_epoch, images=images)
        next_step = advice(tries)
    said = f"Pretraining learned nothing useful: {verdict.diagnosis}. {next_step}"
    return [RunWarning(CODES[verdict.kind], said)]


def _knows_more(watch: Watch) -> bool:
    """Whether k-NN accuracy is better than that of the untrained network."""
    if watch.start is None or watch.last is None or watch.start.knn is None:
        return False
    return checks.above(watch.last.correct, watch.last.total, watch.start.knn)


def show_warnings(found: Sequence[RunWarning], console: Console) -> None:
    """Show each on the console, and in the log."""
    for one in found:
        console.warn(one.message)


def end_warnings(
    found: Sequence[RunWarning], console: Console, *, json: bool, run: RunFolder | None = None
) -> None:
    """Log the warnings of a result; show them only with JSON, as the result's text has them."""
    if json:
        show_warnings(found, console)
    elif run is not None:
        for one in found:
            run.log(f"{WARNING}: {one.message}")


def write_warnings(found: Sequence[RunWarning], run: RunFolder) -> None:
    """Write warnings.json into the run folder, for the report."""
    write_json(run.file(FILE), [asdict(one) for one in found])
