"""`runs`: a table of the runs in a folder, read from the files that they wrote."""

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any

from unfreeze.config.commands import RunsSettings
from unfreeze.config.layering import load_settings
from unfreeze.config.shared import data_name
from unfreeze.errors import UsageError
from unfreeze.reports.results_runs import runs_display
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.console import Console
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.run_folder import RESULT, is_run_folder

# their date is that of the run; what lies inside a run (folds, compared runs) is a part of it
RESULTS = ("compare.json", "demo.json", RESULT, "config.toml")


@dataclass(frozen=True)
class RunEntry:
    """One run: `kind` is pretrain, finetune, compare or demo; `date` that of its result.

    `metric`, `value`, `interval`: of its latest evaluation on `split`; None if there is none.
    `state`: finished, unfinished, or which file cannot be read.
    """

    path: str
    kind: str
    task: str | None
    arch: str | None
    data: str | None
    metric: str | None
    value: float | None
    interval: tuple[float, float] | None
    split: str | None
    date: str
    state: str


@dataclass(frozen=True, repr=False)
class RunTable(Displayed):
    """The runs in a folder, the newest first."""

    folder: str
    runs: list[RunEntry]

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return runs_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per run."""
        return [asdict(run) for run in self.runs]


@python_call(RunsSettings)
def runs(folder: str | PathLike[str], *, progress: bool | None = None, **settings: Any) -> RunTable:
    """List the runs in `folder`, at any depth; UsageError if it is not a folder."""
    given = load_settings(RunsSettings, {"folder": folder, **settings})
    return run_runs(given, python_console(progress))


@isolated()
def run_runs(settings: RunsSettings, console: Console) -> RunTable:
    """The same from a settings object."""
    folder = Path(settings.folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.", "Give the folder that holds the runs.")
    entries = [_entry(path) for path in _run_folders(folder)]
    return RunTable(str(folder), sorted(entries, key=lambda run: run.date, reverse=True))


def _run_folders(folder: Path) -> Iterator[Path]:
    """Run folders in alphabetical order, without those inside another run.

    Other programs write a config.toml and a result.json, too.
    """
    for name, inner, files in os.walk(folder):
        if any(mark in files for mark in RESULTS) and is_run_folder(name):
            inner.clear()
            yield Path(name)
        inner.sort()


def _entry(run: Path) -> RunEntry:
    damaged = list[str]()

    def read(name: str) -> dict[str, Any]:
        path = run / name
        if not path.is_file():
            return {}
        try:
            text = path.read_text(encoding="utf-8")
            parsed = tomllib.loads(text) if name.endswith(".toml") else json.loads(text)
            return dict(parsed)
        except (OSError, ValueError, TypeError):
            damaged.append(name)
            return {}

    config, result, compared = read("config.toml"), read(RESULT), read("compare.json")
    demo, kind = read("demo.json"), "finetune" if "freeze" in config else "pretrain"
    if compared or isinstance(config.get("weights"), list):
        kind = "compare"
    elif (run / "demo.json").is_file():
        kind = "demo"
    done = bool(result or compared or demo)
    newest = max((run / name).stat().st_mtime for name in RESULTS if (run / name).is_file())
    metric, value, interval, split = _score(result, read("evaluation.json"), compared)
    data = config.get("data")
    return RunEntry(
        path=str(run),
        kind=kind,
        task=result.get("task") or compared.get("task"),
        arch=compared.get("arch") or result.get("arch") or config.get("arch"),
        data=data_name(tuple(data) if isinstance(data, list) else data) if data else None,
        metric=metric,
        value=value,
        interval=interval,
        split=split,
        date=datetime.fromtimestamp(newest).isoformat(sep=" ", timespec="minutes"),
        state=f"{damaged[0]} cannot be read" if damaged else "finished" if done else "unfinished",
    )


Score = tuple[str | None, float | None, tuple[float, float] | None, str | None]


def _score(
    result: Mapping[str, Any], evaluation: Mapping[str, Any], compared: Mapping[str, Any]
) -> Score:
    """(metric, value, interval, split) of a comparison's best start, an evaluation, or a result."""
    if compared.get("starts"):
        metric = compared.get("metric") or "accuracy"
        key = "accuracy" if metric == "accuracy" else "value"
        order = sorted(compared["starts"], key=lambda start: float(start[key]))
        start = order[0 if compared.get("lower_is_better") else -1]
        return metric, start[key], _pair(start["interval"]), compared.get("split")
    if evaluation.get("metrics"):
        name, value = next(iter(evaluation["metrics"].items()))
        interval = (evaluation.get("intervals") or {}).get(name)
        return name, value, _pair(interval), evaluation.get("split")
    if evaluation.get("accuracy") is not None:
        interval = evaluation.get("interval") or result.get("val_interval")
        return "accuracy", evaluation["accuracy"], _pair(interval), evaluation.get("split")
    if result.get("knn") is not None:
        return "k-NN accuracy", result["knn"], None, None
    best = result.get("best") or {}
    if best.get("figure"):
        return best["figure"], best.get("value"), None, None
    return None, None, None, None


def _pair(interval: Any) -> tuple[float, float] | None:
    return (float(interval[0]), float(interval[1])) if interval else None
