"""The run folder: creation, metrics.jsonl and log.txt."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from unfreeze.config.layering import is_run_config
from unfreeze.errors import DataError, UsageError
from unfreeze.runtime.atomic import disk_full, is_full, write_text
from unfreeze.runtime.output_files import check_writable, is_json_with, refuse_inputs, refuse_inside
from unfreeze.runtime.run_lock import LOCK_FILES as LOCKS
from unfreeze.text import clean_all, for_screen

# all top-level entries of the folder of a run, a comparison or the demo
ENTRIES = {
    *("config.toml", "metrics.jsonl", "log.txt", "problems.csv", "split.csv", "checkpoints"),
    *("model", "views.npz", "prototypes.npz", "prototypes.png", "curves.png", "report.html"),
    *("evaluation.json", "predictions.csv", "mistakes.csv", "examples.npz", "test_uses.json"),
    *("folds", "folds.json", "experiment.json", "evaluated.npz", "compare.json", "compare.csv"),
    *(
        "warnings.json",
        "result.json",
        "demo.json",
        "pretrain",
        "loggers.json",
        "tensorboard",
        "wandb",
        "checkpoint.pth.tar",
    ),
}
# subfolders of comparisons and the demo, and temporary files of interrupted writes
_SUBFOLDERS = re.compile(r"\d\d+-.+-seed-\d+(-.+)?|\w+-\d+-labels-seed-\d+|\..+\.tmp")


class RunFolder:
    """The folder of one run: `metrics.jsonl`, `log.txt`, `checkpoints/`, `model/` and the rest."""

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes  # true for rank 0 only
        self.listeners: list[Callable[[dict[str, Any]], None]] = []  # called with each record
        self.recorded = 0  # last recorded step before a resume, dropped records included

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        resume: str | None = None,
        overwrite: bool = False,
        inputs: Iterable[str] = (),
        hold: Callable[[Path], None] | None = None,
    ) -> "RunFolder":
        """Create the folder, or check and prepare an existing one; `overwrite` empties it.

        `hold`: locks the folder before anything in it is changed (`RunFolderLocks.take`).
        """
        how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "inputs": list(inputs)}
        folder = check_run_folder(path, **how)
        folder.mkdir(parents=True, exist_ok=True)
        if hold is not None:
            hold(folder)
            check_run_folder(path, **how)  # another run may have used it before the lock
        if overwrite:
            _empty(folder)
        _remove_temporary(folder)
        return cls(folder)

    def file(self, name: str) -> Path:
        """The path of one of the run's files."""
        return self.path / name

    def metric(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl and pass it to the listeners."""
        self._append("metrics.jsonl", json.dumps(clean_all(record)))
        for listen in self.listeners:
            listen(record)

    def log(self, text: str) -> None:
        """Append one line with date and time to log.txt."""
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {for_screen(text)}")

    def metrics(self) -> list[dict[str, Any]]:
        """All records of metrics.jsonl, without a last line truncated by a crash."""
        return read_metrics(self.path)

    def rewind_metrics(self, step: int) -> None:
        """Drop records after `step`, which a resumed run writes again."""
        if not self.writes:
            return
        records = self.metrics()
        remaining = [r for r in records if r.get("step", 0) <= step]
        self.recorded = max((r.get("step", 0) for r in records), default=0)
        write_text(self.file("metrics.jsonl"), "".join(json.dumps(r) + "\n" for r in remaining))

    def _append(self, name: str, line: str) -> None:
        if not self.writes:
            return
        try:
            with self.file(name).open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            if is_full(error):
                raise disk_full(self.file(name), error) from error
            raise


RESULT = "result.json"  # written when a run is complete


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl in order; [] if there is none.

    A last line truncated by a crash is ignored; DataError for any other invalid line.
    """
    path = Path(folder) / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise DataError(
                    f"{path}: line {number} is not valid JSON: {error}.",
                    "Remove that line by hand.",
                ) from error
    return records


def check_run_folder(
    path: str | Path,
    *,
    resume: str | None = None,
    overwrite: bool = False,
    inputs: Iterable[str] = (),
) -> Path:
    """The path as a run folder; UsageError if a run may not be written there.

    A non-empty folder requires `resume` or `overwrite`, and both require a run folder: other files
    are neither deleted nor overwritten. It must not contain any of the `inputs`. Nothing is
    changed.
    """
    folder, inputs = Path(path), list(inputs)
    check_writable("--out", folder)
    refuse_inputs("--out", folder, inputs)
    if resume and overwrite:
        raise UsageError("--resume and --overwrite cannot be combined.", "Give one.")
    entries = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    entries = [name for name in entries if name not in LOCKS]
    if not entries:
        return folder
    if not resume and not overwrite:
        raise UsageError(
            f"--out {folder} is not empty.",
            "Name a new folder, or add --resume to continue or --overwrite to start again.",
        )
    not_a_run = not is_run_folder(folder)
    if resume:
        run_entries = [name for name in entries if name in ENTRIES]
        if not_a_run and run_entries:
            raise UsageError(
                f"--resume: {folder} is not a run folder; it holds {run_entries[0]}. Nothing was "
                "changed.",
                "Name the run's folder, or a new one.",
            )
        return folder
    foreign_entries = [
        name for name in entries if name not in ENTRIES and not _SUBFOLDERS.fullmatch(name)
    ]
    if not_a_run or foreign_entries:
        what = (
            f"holds {foreign_entries[0]}, which no run wrote"
            if foreign_entries
            else "is not a run folder"
        )
        raise UsageError(
            f"--overwrite: {folder} {what}, so nothing was deleted.",
            "Name another folder, or empty this one yourself.",
        )
    refuse_inside("--overwrite", folder, inputs)
    return folder


def is_run_folder(folder: str | Path) -> bool:
    """Whether the folder was written by a run, a comparison or the demo."""
    path = Path(folder)
    demo, metrics = path / "demo.json", path / "metrics.jsonl"
    try:
        if is_run_config(path / "config.toml"):
            return True
        if demo.is_file():
            return is_json_with("seconds", "results", "scores")(demo)
        with metrics.open("rb") as stream:
            first = json.loads(stream.readline(2**16))
        return isinstance(first, dict) and "step" in first
    except (OSError, ValueError):
        return False


def _remove_temporary(folder: Path) -> None:
    """Remove temporary files of interrupted writes, in run folders only."""
    if is_run_folder(folder):
        for pattern in (".*.tmp", "checkpoints/.*.tmp", "model/.*.tmp"):
            for file in folder.glob(pattern):
                file.unlink(missing_ok=True)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name in LOCKS:
            continue  # in use by this process
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
