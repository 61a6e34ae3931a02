"""One run of a comparison: trained, evaluated once, with its result in its own folder."""

import json
import re
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from unfreeze.api.evaluate import answers
from unfreeze.api.finetune import FinetuneResult, run_finetune
from unfreeze.api.report import report
from unfreeze.api.starts import Start
from unfreeze.data.splits import read_split_csv
from unfreeze.errors import DataError
from unfreeze.evaluation.warnings import NO_LEARNING, RunWarning, latest
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import Console, Hushed
from unfreeze.runtime.runfolder import read_metrics
from unfreeze.settings.use import EvaluateSettings

JUDGED = "judged.json"


@dataclass(frozen=True)
class Trial:
    """A start, a seed and their run folder; with several `rates` one folder for each."""

    start: Start
    seed: int
    folder: Path
    rates: tuple[float, ...] = ()

    def folders(self) -> dict[Path, float | None]:
        """Run folder -> learning rate (None: the default)."""
        if not self.rates:
            return {self.folder: None}
        return {self.folder.with_name(f"{self.folder.name}-lr-{r:g}"): r for r in self.rates}

    def remembered(self) -> "Judged | None":
        """The stored result; None if the run is not finished."""
        results = (remembered(folder) for folder in self.folders())
        return next((result for result in results if result is not None), None)


@dataclass(frozen=True)
class Outcome:
    """The result of one run, evaluated on `split`.

    `tried`: number of learning rates or sweep pairs that were compared on validation. `leaked`,
    `accuracy_unleaked`: as in `Evaluation`. `warnings`: of training and evaluation.
    """

    weights: str
    seed: int
    run: str
    arch: str
    image_size: int
    lr: float | None  # None: the head was solved, not trained
    tried: int
    epochs: int
    best_epoch: int | None
    val_accuracy: float | None
    split: str
    n: int
    accuracy: float
    interval: tuple[float, float]
    balanced_accuracy: float
    loss: float
    leaked: int | None
    accuracy_unleaked: float | None
    test_uses: int | None
    seconds: float
    warnings: list[RunWarning]

    @property
    def learned(self) -> bool:
        """Whether no warning says that nothing was learned."""
        return not {warning.code for warning in self.warnings} & NO_LEARNING


@dataclass(frozen=True)
class Judged:
    """An outcome with the evaluated images: `paths`, and which predictions were right."""

    outcome: Outcome
    paths: list[str]
    right: npt.NDArray[np.bool_]


def folder_name(number: int, start: Start, seed: int) -> str:
    """`02-swav-seed-1`: numbered by start, so that a comparison can be extended."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", start.name)[:40].strip("-.") or "start"
    return f"{number:02}-{slug}-seed-{seed}"


def tried(trial: Trial, eval_data: dict[str, Any], console: Console, *, began: float) -> Judged:
    """Train and evaluate a trial, or return the stored result if it is finished.

    With several rates only the best on validation is evaluated. `judge`: `data` and `split` for
    `evaluate`.
    """
    stored = trial.remembered()
    if stored is not None:
        return stored
    quiet, runs = Hushed(console), []
    for folder, rate in trial.folders().items():
        lr = trial.start.settings.lr if rate is None else rate
        resume = "auto" if folder.exists() else None
        run_settings: dict[str, Any] = {
            "seed": trial.seed,
            "out": str(folder),
            "resume": resume,
            "lr": lr,
        }
        settings = replace(trial.start.settings, **run_settings)
        run = run_finetune(settings, quiet, began=began, draw=False)
        runs.append(cast(FinetuneResult, run))  # not a plan: it is no dry run
    return _evaluate(trial, best_on_validation(runs), len(runs), eval_data, quiet)


def best_on_validation(runs: list[FinetuneResult]) -> FinetuneResult:
    """The run with the best validation accuracy, then loss; the test set is not used."""
    if len(runs) == 1:
        return runs[0]
    if any(run.val_accuracy is None for run in runs):
        raise DataError(
            "--rates needs a validation set, but no images are held out.",
            "Use one --lr instead of --rates, or add images of each class.",
        )
    return max(runs, key=lambda run: (run.val_accuracy or 0.0, -_validation_loss(run)))


def _validation_loss(run: FinetuneResult) -> float:
    """Validation loss of the selected epoch, from metrics.jsonl."""
    lines = [m for m in read_metrics(run.run) if m.get("split") == "val"]
    best = lines[-1]["epoch"] if run.best_epoch is None else run.best_epoch
    return float(next(m["loss"] for m in lines if m["epoch"] == best))


def _evaluate(
    trial: Trial, finetuned: FinetuneResult, runs: int, eval_data: dict[str, Any], console: Console
) -> Judged:
    s, run = trial.start.settings, Path(finetuned.run)
    resolved = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    serving = {name: getattr(s, name) for name in ("device", "data_root", "workers")}
    eval_settings = EvaluateSettings(run=finetuned.run, weights_of="best", **eval_data, **serving)
    evaluation, predictions = answers(eval_settings, console)
    outcome = Outcome(
        weights=trial.start.weights,
        seed=trial.seed,
        run=finetuned.run,
        arch=finetuned.arch,
        image_size=int(resolved["image_size"]),
        lr=resolved.get("lr"),
        tried=runs * max(1, len(resolved["facts"].get("tried", ()))),  # a head may sweep by itself
        epochs=finetuned.epochs,
        best_epoch=finetuned.best_epoch,
        val_accuracy=finetuned.val_accuracy,
        split=evaluation.split,
        n=evaluation.n,
        accuracy=evaluation.accuracy,
        interval=evaluation.interval,
        balanced_accuracy=evaluation.balanced_accuracy,
        loss=evaluation.loss,
        leaked=evaluation.leaked,
        accuracy_unleaked=evaluation.accuracy_unleaked,
        test_uses=evaluation.test_uses,
        seconds=finetuned.seconds,
        warnings=latest(finetuned.warnings, evaluation.warnings),
    )
    report(finetuned.run)
    paths, right = (
        [prediction.path for prediction in predictions.each],
        [prediction.right for prediction in predictions.each],
    )
    write_json(run / JUDGED, {**asdict(outcome), "paths": paths, "right": right})
    return Judged(outcome, paths, np.array(right, np.bool_))


def remembered(folder: Path) -> Judged | None:
    """The stored result of a finished run; None if it is not finished."""
    path = folder / JUDGED
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        paths, right = record.pop("paths"), np.array(record.pop("right"), np.bool_)
        record["interval"] = tuple(record["interval"])
        record["warnings"] = [RunWarning(**warning) for warning in record["warnings"]]
        return Judged(Outcome(**record), paths, right)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}.", "Remove the folder; --resume trains this run again."
        ) from error


def images_of(folder: Path) -> frozenset[tuple[str, str]]:
    """(path, split) of the training and validation images of a run."""
    return frozenset((r.path, r.split) for r in read_split_csv(folder / "split.csv"))
