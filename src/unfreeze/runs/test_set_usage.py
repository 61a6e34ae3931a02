"""Counts the evaluations of a run on test images, to expose model selection on the test set."""

import json
import time
from pathlib import Path
from typing import Any

from unfreeze.checkpoints.model_file import CARD, TENSORS
from unfreeze.config.layering import is_run_config
from unfreeze.errors import DataError
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.run_lock import exclusive_access

FILE = "test_uses.json"


def run_folder(path: str | Path) -> Path | None:
    """The run folder of a path (also of its `model/` folder); None for a model alone."""
    location = Path(path).absolute()
    if location.name in (CARD, TENSORS):
        location = location.parent
    candidates = (location, location.parent) if location.name == "model" else (location,)
    return next((folder for folder in candidates if is_run_config(folder / "config.toml")), None)


def count_test_uses(run: Path) -> int:
    """The number of evaluations so far."""
    return len(_read_uses(run))


def record_test_use(run: Path, *, data: str, split: str, n: int) -> int:
    """Add one evaluation to the run's file and return their number, safe against races."""
    use = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "data": data, "split": split, "n": n}
    with exclusive_access(run / FILE):
        uses = [*_read_uses(run), use]
        write_json(run / FILE, {"uses": uses})
    return len(uses)


def _read_uses(run: Path) -> list[Any]:
    path = run / FILE
    try:
        uses = json.loads(path.read_text(encoding="utf-8"))["uses"] if path.exists() else []
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}.", "Remove it; it counts evaluations on the test set."
        ) from error
    return list(uses)
