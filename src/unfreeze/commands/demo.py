"""`demo`: pretraining and transfer learning on scikit-learn's handwritten digits.

Pretrains on the training digits without labels, then trains on 1, 5 and 10 labels per class in
three ways, with the same labels: logistic regression on raw pixels, the same network from scratch,
and a linear head on frozen SwAV features. All figures are read from the files of the runs.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.commands.evaluate import evaluate_with_predictions
from unfreeze.commands.finetune import run_finetune
from unfreeze.commands.pretrain import PretrainPlan, plan_pretrain, run_pretrain
from unfreeze.commands.report import report
from unfreeze.config.commands import DemoSettings, EvaluateSettings
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.layering import build, load_settings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.index.index import TEST, build_index
from unfreeze.data.index.splits import read_split_csv
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.sources.open import BUILTIN_PREFIX, open_source
from unfreeze.errors import Interrupted
from unfreeze.reports.results_runs import demo_display
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import Console, QuietConsole
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.run_lock import RunFolderLocks

LABELS = (1, 5, 10)
METHODS = ("pixels", "scratch", "swav")
EPOCHS = 30
# selected on 360 held-out training digits, never on the test set (docs/LOG.md)
PRETRAIN: dict[str, Any] = {
    "arch": "unfreeze/tiny",
    "augment": "digits",
    "batch_size": 64,
    "base_lr": 2e-3,
    "epsilon": 0.03,
    "nmb_prototypes": 64,
    "size_crops": (16, 12),
    "nmb_crops": (2, 2),
    "min_scale_crops": (0.5, 0.5),
    "max_scale_crops": (1.0, 1.0),
    "tune": "off",  # results are published: no dependence on measured settings
}
TUNE: dict[str, dict[str, Any]] = {
    "scratch": {"weights": "none", "freeze": "none", "optimizer": "adamw", "lr": 2e-3},
    "swav": {"freeze": "all", "optimizer": "adamw", "lr": 3e-2},
}
COMMON: dict[str, Any] = {
    "arch": "unfreeze/tiny",
    "augment": "digits",
    "image_size": 16,
    "epochs": 40,
    "batch_size": 16,
    "checkpoint_every": 40,
    "cache": "off",  # new augmented views in each epoch, as for the published results
    "val": 0.0,
}

Results = dict[str, dict[str, list[float]]]


@dataclass(frozen=True, repr=False)
class DemoResult(Displayed):
    """`results[method][labels per class]`: [mean, standard deviation] of test accuracy, 0..1.

    `curves`, `prototypes` (images of each prototype) and `report`: paths of plots and report.
    """

    run: str
    seconds: float
    results: Results
    curves: str | None
    prototypes: str | None
    report: str

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return demo_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per method and number of labels."""
        return [
            {"method": method, "labels_per_class": int(count), "accuracy": mean, "deviation": std}
            for method, by_count in self.results.items()
            for count, (mean, std) in by_count.items()
        ]


@python_call(DemoSettings)
def demo(
    out: str | None = None, *, progress: bool | None = None, **settings: Any
) -> DemoResult | PretrainPlan:
    """Run the demo into the folder `out` (default: a new one under `runs/`)."""
    at = {"out": out} if out else {}  # else it may come from a settings file
    return run_demo(load_settings(DemoSettings, {**at, **settings}), python_console(progress))


@isolated()
def run_demo(
    settings: DemoSettings, console: Console, *, data: str = f"{BUILTIN_PREFIX}digits"
) -> DemoResult | PretrainPlan:
    """The same from a settings object; `data` is another source with the same classes."""
    pretraining = {
        **PRETRAIN,
        "data": data,
        "seed": settings.seed,
        "epochs": settings.epochs or EPOCHS,
        "device": settings.device,
        "precision": settings.precision,
        "workers": settings.workers,
        "dry_run": settings.dry_run,
    }
    if settings.dry_run:
        return plan_pretrain(build(PretrainSettings, pretraining), console)
    with RunFolderLocks() as locks:
        run = RunFolder.create(settings.out or _new_folder(), hold=locks.take)
        return _run_all(run, pretraining, settings, console, data)


def _run_all(
    run: RunFolder,
    pretraining: dict[str, Any],
    settings: DemoSettings,
    console: Console,
    data: str,
) -> DemoResult:
    started = time.monotonic()
    pretraining["out"] = str(run.file("pretrain"))
    try:
        run_pretrain(build(PretrainSettings, pretraining), console)
        scores = _scores(run, data, settings, console)
    except Interrupted as stopped:
        # single runs could be resumed, the demo as a whole cannot
        raise Interrupted(
            f"The demo was stopped; {run.path} holds the finished parts.",
            "Start it again: it uses a new folder and does not resume this one.",
        ) from stopped
    results = {
        method: {str(n): _mean_and_std(scores[method][n]) for n in LABELS} for method in METHODS
    }
    seconds = round(time.monotonic() - started, 1)
    write_json(run.file("demo.json"), {"seconds": seconds, "results": results, "scores": scores})
    drawn = report(str(run.path))
    return DemoResult(str(run.path), seconds, results, drawn.curves, drawn.prototypes, drawn.report)


def _scores(
    run: RunFolder, data: str, settings: DemoSettings, console: Console
) -> dict[str, dict[int, list[float]]]:
    """Test accuracies by method, number of labels and random draw of labels."""
    scores: dict[str, dict[int, list[float]]] = {m: {n: [] for n in LABELS} for m in METHODS}
    total = len(LABELS) * settings.seeds
    with console.progress("1, 5 and 10 labels per class", total) as advance:
        for n in LABELS:
            for seed in range(settings.seeds):
                folders = {}
                for method in ("scratch", "swav"):
                    folders[method] = run.file(f"{method}-{n}-labels-seed-{seed}")
                    _finetune(method, folders[method], data, n, seed, settings, run)
                    eval_settings = EvaluateSettings(
                        run=str(folders[method]), data=(data,), split="test"
                    )
                    evaluation, _ = evaluate_with_predictions(eval_settings, QuietConsole())
                    scores[method][n].append(evaluation.accuracy)
                scores["pixels"][n].append(_pixels(data, folders["swav"]))
                advance(1)
    return scores


def _finetune(
    method: str,
    out: Path,
    data: str,
    n: int,
    seed: int,
    settings: DemoSettings,
    run: RunFolder,
) -> None:
    how = {**COMMON, **TUNE[method]}
    if method == "swav":
        how["weights"] = str(run.file("pretrain"))
    chosen = {
        **how,
        "data": data,
        "out": str(out),
        "labels_per_class": n,
        "seed": seed,
        "device": settings.device,
        "precision": settings.precision,
    }
    # thirty reports would take half a minute; `report` writes any of them
    run_finetune(build(FinetuneSettings, chosen), QuietConsole(), draw=False)


def _pixels(data: str, run: Path) -> float:
    """Test accuracy of logistic regression on the raw pixels of the training images of `run`."""
    from sklearn.linear_model import LogisticRegression

    index = build_index(open_source(data))
    used = {row.path for row in read_split_csv(run / "split.csv") if row.split == "train"}
    train = [i for i, path in enumerate(index.paths) if path in used]
    test = index.where(TEST)
    images = ImageDataset(index)

    def flat(positions: Any) -> Any:
        return np.stack([images[int(i)][..., 0].ravel() / 16.0 for i in positions])

    model = LogisticRegression(max_iter=2000).fit(flat(train), index.labels[train])
    return float(model.score(flat(test), index.labels[test]))


def _mean_and_std(values: list[float]) -> list[float]:
    """[mean, standard deviation] over the draws."""
    return [round(float(np.mean(values)), 4), round(float(np.std(values, ddof=1)), 4)]


def _new_folder() -> str:
    """Create the first free folder `runs/demo-NNN`, safe against other processes."""
    number = 1
    while True:
        folder = Path(f"runs/demo-{number:03d}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return str(folder)
