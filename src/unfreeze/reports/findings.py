"""What a run's folder says: every file read once, each of them optional."""

import json
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unfreeze.errors import DataError, UsageError
from unfreeze.evaluation.warnings import RunWarning, latest
from unfreeze.reports.examples import FILE as EXAMPLES
from unfreeze.reports.examples import Example, read_examples
from unfreeze.runtime.runfolder import RESULT, read_metrics
from unfreeze.runtime.tables import records

T = TypeVar("T")
Pixels = NDArray[np.uint8]
# a run's folder has one of these
MARKS = ("config.toml", "metrics.jsonl", "demo.json", "compare.json")
PRETRAINING = "pretrain"  # where a demo keeps its pretraining run


@dataclass(frozen=True)
class Prototypes:
    """What the prototypes gathered, the largest first."""

    images: Pixels  # [P, M, S, S, 3]: for each prototype the images nearest to it
    number: NDArray[np.int64]  # [P]
    share: NDArray[np.float64]  # [P], of all images


@dataclass(frozen=True)
class Findings:
    """The files of a run; what is not there is empty or None."""

    folder: Path
    settings: dict[str, Any]
    reasons: dict[str, str]
    facts: dict[str, Any]
    metrics: list[dict[str, Any]]
    problems: list[dict[str, str]]
    evaluation: dict[str, Any] | None
    examples: list[Example]  # images of the evaluation
    demo: dict[str, Any] | None
    comparison: dict[str, Any] | None
    repeated: dict[str, Any] | None
    prototypes: Prototypes | None
    views: Pixels | None  # [n, v, S, S, 3]
    warned: list[dict[str, str]]  # of the run itself
    result: dict[str, Any] | None  # of a run that has ended

    @property
    def warnings(self) -> list[RunWarning]:
        """Those of the run, then of what was evaluated since or compared.

        Of one code the latest stands: it is about the images that judged last.
        """
        evaluated = (self.evaluation or {}).get("warnings", ())
        compared = (self.comparison or {}).get("warnings", ())
        parts = [[RunWarning(**one) for one in some] for some in (self.warned, evaluated, compared)]
        return latest(*parts)

    @property
    def kind(self) -> str:
        """`demo`, `compare`, `pretrain`, `finetune` or `run`."""
        if self.comparison is not None:
            return "compare"
        if self.demo is not None:
            return "demo"
        if "nmb_prototypes" in self.settings:
            return "pretrain"
        return "finetune" if "freeze" in self.settings else "run"

    @property
    def unfinished(self) -> bool:
        """Whether a run began and has not come to its end."""
        if self.kind not in ("pretrain", "finetune") or self.result is not None:
            return False
        done = self.metrics[-1].get("step") if self.metrics else None
        whole = (self.folder / "model" / "model.json").is_file()
        return not (whole and done == self.facts.get("steps"))


def read_findings(run: str | Path) -> Findings:
    """Everything a report draws from; UsageError for a folder that is no run's.

    A demo's own folder holds its table; the rest is looked for in its pretraining run.
    """
    folder = Path(run)
    if not any((folder / mark).is_file() for mark in MARKS):
        raise UsageError(
            f"{folder} is not a run's folder: it has none of {', '.join(MARKS)}.",
            "Name the folder that was given as --out.",
        )
    places = [folder, folder / PRETRAINING] if (folder / "demo.json").is_file() else [folder]

    def find(name: str, read: Callable[[Path], T]) -> T | None:
        path = next((place / name for place in places if (place / name).is_file()), None)
        return None if path is None else _read(path, read)

    config = find("config.toml", _toml) or {}
    return Findings(
        folder=folder,
        settings={k: v for k, v in config.items() if not isinstance(v, dict)},
        reasons=config.get("reasons", {}),
        facts=config.get("facts", {}),
        metrics=find("metrics.jsonl", lambda path: read_metrics(path.parent)) or [],
        problems=find("problems.csv", _rows) or [],
        evaluation=find("evaluation.json", _json),
        examples=find(EXAMPLES, read_examples) or [],
        demo=find("demo.json", _json),
        comparison=find("compare.json", _json),
        repeated=find("folds.json", _json),
        prototypes=find("prototypes.npz", _prototypes),
        views=find("views.npz", _views),
        warned=find("warnings.json", _warnings) or [],
        result=find(RESULT, _json),
    )


def _read(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read: {error}.", "Move it away; the report is drawn without it."
        ) from error


def _warnings(path: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _rows(path: Path) -> list[dict[str, str]]:
    return records(path)


def _prototypes(path: Path) -> Prototypes:
    with np.load(path, allow_pickle=False) as held:
        share = np.asarray(held["share"], np.float64)
        order = np.argsort(-share, kind="stable")
        return Prototypes(held["images"][order], held["prototype"][order], share[order])


def _views(path: Path) -> Pixels:
    with np.load(path, allow_pickle=False) as held:
        return np.asarray(held["views"], np.uint8)
