"""One run of a comparison: trained, evaluated once, with its result in its own folder."""

import json
import re
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from unfreeze.checkpoints.model_file import model_folder, read_card
from unfreeze.commands.evaluate import evaluate_with_predictions
from unfreeze.commands.finetune import FinetunePlan, FinetuneResult, run_finetune
from unfreeze.commands.report import report
from unfreeze.config.commands import CompareSettings, EvaluateSettings
from unfreeze.config.finetune import FinetuneOptions, FinetuneSettings
from unfreeze.config.shared import data_name, label_arguments
from unfreeze.data.images.intensity import parse_intensity
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.index import TEST, build_index
from unfreeze.data.index.splits import read_split_csv
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError, UsageError
from unfreeze.evaluation.warnings import NO_LEARNING, RunWarning, merge_latest
from unfreeze.models.identify_file import arch_of_weights
from unfreeze.runs.finetuning.data import read_labels, split_undecoded
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import Console, ProgressOnlyConsole, QuietConsole
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.transfer.initialize import build_start as started


@dataclass(frozen=True)
class CompareStart:
    """One value of `--weights`, the settings of its runs, and the plan of the first run."""

    weights: str
    settings: FinetuneSettings
    plan: FinetunePlan

    @property
    def name(self) -> str:
        """The name to display; of a path its last part."""
        return Path(self.weights).name if Path(self.weights).exists() else self.weights

    @property
    def pretrained(self) -> bool:
        """Whether the weights are not random."""
        return self.weights != "none"


def all_starts(s: CompareSettings) -> list[CompareStart]:
    """All starts, in the order of `--weights`; trains and downloads nothing.

    Values of `--arch`, `--stem`, `--image-size`, `--mean`, `--std`, `--range` and `--channels`
    that are not given are for `none` those of the first pretrained start (runs before others), so
    that only the weights differ.
    """
    if len(s.weights) < 2 or len(set(s.weights)) < len(s.weights):
        raise UsageError(
            "compare needs two or more different --weights.", "For example: --weights none RUN."
        )
    arch = s.arch or _common_arch(s.weights)
    by_weights = {w: _start(s, w, {"arch": arch}) for w in s.weights if w != "none"}
    if "none" in s.weights:
        unfreeze_runs = [w for w in by_weights if arch_of_weights(w, arch) is not None]
        model = next(iter(unfreeze_runs or by_weights))
        reference = by_weights[model].plan.settings
        inherited = {
            name: reference[name] for name in ("arch", "stem", "image_size", "mean", "std")
        }
        requested = {name: getattr(s, name) for name in inherited}
        filled = {n: v for n, v in inherited.items() if requested[n] in (None, "auto")}
        filled |= {n: v for n, v in _decoding_of(model).items() if getattr(s, n) is None}
        by_weights["none"] = _start(s, "none", filled)
    return [by_weights[weights] for weights in s.weights]


def _decoding_of(weights: str) -> dict[str, Any]:
    """The intensity range and channels of a run; {} if `weights` is not a run."""
    if not Path(weights).exists() or model_folder(weights) is None:
        return {}
    preprocess = Preprocess.from_dict(read_card(weights).preprocess)
    rule, channels = parse_intensity(preprocess.intensity)
    return {"range": rule, "channels": channels}


def check_weights(start: CompareStart, s: CompareSettings, console: Console) -> None:
    """Load the weights once before training; WeightsError if they are missing or do not fit."""
    if not start.pretrained:
        return
    settings = start.settings
    loaded = started(
        str(start.plan.settings["arch"]),
        start.weights,
        settings.stem,
        classes=len(start.plan.classes),
        side=read_labels(settings, QuietConsole()).side,
        allow_partial=s.allow_partial,
    ).loaded
    if loaded is not None:
        console.say(f"{start.name}: {loaded.account}")
        if loaded.licence:
            console.say(loaded.licence)


def _start(s: CompareSettings, weights: str, extra: dict[str, Any]) -> CompareStart:
    """The start of `weights`, with its settings and the plan of a dry run."""
    names = [entry.name for entry in fields(FinetuneOptions)]
    values = {name: getattr(s, name) for name in names} | {"weights": weights}
    values |= {name: _to_tuple(value) for name, value in extra.items() if value is not None}
    values |= {"resume": None, "overwrite": False, "dry_run": False, "out": None}
    config = FinetuneSettings(**values)
    plan = run_finetune(replace(config, dry_run=True), QuietConsole())
    return CompareStart(weights, config, cast(FinetunePlan, plan))


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _common_arch(weights: tuple[str, ...]) -> str | None:
    """The architecture of the checkpoints among the weights; None if none of them names one."""
    arch_of = {
        w: known.arch for w in weights if w != "none" and (known := arch_of_weights(w)) is not None
    }
    if len(set(arch_of.values())) > 1:
        list_of = ", ".join(f"{name} is a {arch}" for name, arch in arch_of.items())
        raise UsageError(
            f"The weights are of different architectures: {list_of}.",
            "Compare weights of one architecture.",
        )
    return next(iter(arch_of.values()), None)


RESULT_FILE = "judged.json"


@dataclass(frozen=True)
class CompareRun:
    """A start, a seed and their run folder; with several `rates` one folder for each."""

    start: CompareStart
    seed: int
    folder: Path
    rates: tuple[float, ...] = ()

    def folders(self) -> dict[Path, float | None]:
        """Run folder -> learning rate (None: the default)."""
        if not self.rates:
            return {self.folder: None}
        return {self.folder.with_name(f"{self.folder.name}-lr-{r:g}"): r for r in self.rates}

    def remembered(self) -> "EvaluatedRun | None":
        """The stored result; None if the run is not finished."""
        results = (stored_result(folder) for folder in self.folders())
        return next((result for result in results if result is not None), None)


@dataclass(frozen=True)
class CompareRunResult:
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
class EvaluatedRun:
    """An outcome with the evaluated images: `paths`, and which predictions were right."""

    outcome: CompareRunResult
    paths: list[str]
    right: npt.NDArray[np.bool_]


def folder_name(number: int, start: CompareStart, seed: int) -> str:
    """`02-swav-seed-1`: numbered by start, so that a comparison can be extended."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", start.name)[:40].strip("-.") or "start"
    return f"{number:02}-{slug}-seed-{seed}"


def run_trial(
    trial: CompareRun, eval_data: dict[str, Any], console: Console, *, began: float
) -> EvaluatedRun:
    """Train and evaluate a trial, or return the stored result if it is finished.

    With several rates only the best on validation is evaluated. `judge`: `data` and `split` for
    `evaluate`.
    """
    stored = trial.remembered()
    if stored is not None:
        return stored
    quiet, runs = ProgressOnlyConsole(console), []
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
    trial: CompareRun,
    finetuned: FinetuneResult,
    runs: int,
    eval_data: dict[str, Any],
    console: Console,
) -> EvaluatedRun:
    s, run = trial.start.settings, Path(finetuned.run)
    resolved = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    serving = {name: getattr(s, name) for name in ("device", "data_root", "workers")}
    eval_settings = EvaluateSettings(run=finetuned.run, weights_of="best", **eval_data, **serving)
    evaluation, predictions = evaluate_with_predictions(eval_settings, console)
    outcome = CompareRunResult(
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
        warnings=merge_latest(finetuned.warnings, evaluation.warnings),
    )
    report(finetuned.run)
    paths, right = (
        [prediction.path for prediction in predictions.each],
        [prediction.right for prediction in predictions.each],
    )
    write_json(run / RESULT_FILE, {**asdict(outcome), "paths": paths, "right": right})
    return EvaluatedRun(outcome, paths, np.array(right, np.bool_))


def stored_result(folder: Path) -> EvaluatedRun | None:
    """The stored result of a finished run; None if it is not finished."""
    path = folder / RESULT_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        paths, right = record.pop("paths"), np.array(record.pop("right"), np.bool_)
        record["interval"] = tuple(record["interval"])
        record["warnings"] = [RunWarning(**warning) for warning in record["warnings"]]
        return EvaluatedRun(CompareRunResult(**record), paths, right)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}.", "Remove the folder; --resume trains this run again."
        ) from error


def split_of_run(folder: Path) -> frozenset[tuple[str, str]]:
    """(path, split) of the training and validation images of a run."""
    return frozenset((r.path, r.split) for r in read_split_csv(folder / "split.csv"))


def evaluation_data(s: CompareSettings, finetune_settings: FinetuneSettings) -> dict[str, Any]:
    """Settings for `evaluate`: the data of `--test`, else test of DATA, else the validation set.

    DataError if there is no validation set either.
    """
    if s.test:
        return {"data": (s.test,), "split": None}
    labels = label_arguments(s)
    index = build_index(open_source(s.data, data_root=s.data_root), **labels)
    if len(index.where(TEST)):
        return {"data": s.data, "split": "test", **labels}
    if not len(
        split_undecoded(finetune_settings, read_labels(finetune_settings, QuietConsole())).val
    ):
        raise DataError(
            f"Nothing to evaluate on: {data_name(s.data)} has no test split, and no "
            "validation images "
            "are held out.",
            "Give labelled images with --test, or add a test split to DATA.",
        )
    return {"data": s.data, "split": "val", **labels}
