"""A run's folder: who may write into it, its metrics and its log."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unfreeze.errors import DataError, UsageError
from unfreeze.runtime.atomic import disk_full, is_full, write_text

_NAME = "Name a new folder."
_MARKS = ("config.toml", "metrics.jsonl", "log.txt", "model", "demo.json")


class RunFolder:
    """The folder of one run: `metrics.jsonl`, `log.txt`, `checkpoints/`, `model/` and the rest."""

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes  # of many processes only the first does
        self.listeners: list[Callable[[dict[str, Any]], None]] = []  # told of each record
        self.recorded = 0  # last step on record, those that were dropped again included

    @classmethod
    def create(
        cls, path: str | Path, *, resume: str | None = None, overwrite: bool = False
    ) -> "RunFolder":
        """A folder ready to be written; with `overwrite` it is empty now."""
        folder = allowed(path, resume=resume, overwrite=overwrite)
        if overwrite and folder.is_dir():
            _empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        return cls(folder)

    def file(self, name: str) -> Path:
        """The path of one of the run's files."""
        return self.path / name

    def metric(self, record: dict[str, Any]) -> None:
        """Append one JSON object to metrics.jsonl; whoever listens is told."""
        self._append("metrics.jsonl", json.dumps(record))
        for listen in self.listeners:
            listen(record)

    def log(self, text: str) -> None:
        """Append one dated line to log.txt."""
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def metrics(self) -> list[dict[str, Any]]:
        """Every record of metrics.jsonl; a last line cut by a crash is left out."""
        return read_metrics(self.path)

    def rewind_metrics(self, step: int) -> None:
        """Drop what was recorded after `step`: a resumed run writes those lines again."""
        if not self.writes:
            return
        found = self.metrics()
        kept = [r for r in found if r.get("step", 0) <= step]
        self.recorded = max((r.get("step", 0) for r in found), default=0)
        write_text(self.file("metrics.jsonl"), "".join(json.dumps(r) + "\n" for r in kept))

    def _append(self, name: str, line: str) -> None:
        if not self.writes:
            return
        try:
            with self.file(name).open("a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(line + "\n")
        except OSError as error:
            if is_full(error):
                raise disk_full(self.file(name), error) from error
            raise


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, in order; [] where there is none.

    A last line that a crash cut off is left out; a broken line before it is a DataError.
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
                    f"{path}: line {number} is no JSON: {error}.", "Remove that line by hand."
                ) from error
    return records


def allowed(path: str | Path, *, resume: str | None = None, overwrite: bool = False) -> Path:
    """The path, if a run may go there; UsageError otherwise. Nothing is touched.

    A folder with something in it needs `resume` or `overwrite`; the latter only for a run's.
    """
    folder = Path(path)
    writable("--out", folder)
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other.", "Give one.")
    if not folder.is_dir() or resume or not any(folder.iterdir()):
        return folder
    if not overwrite:
        raise UsageError(
            f"--out {folder} is not empty.",
            "Name a new folder, or add --resume to go on or --overwrite to start again.",
        )
    if not any((folder / name).exists() for name in _MARKS):
        raise UsageError(
            f"--overwrite: {folder} does not look like a run's folder, so nothing was deleted.",
            "Name another folder, or empty this one yourself.",
        )
    return folder


def writable(flag: str, folder: Path) -> None:
    """UsageError where `folder` is not, or cannot become, a folder to write into."""
    try:
        place = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
        if not place.is_dir():
            what = "a file" if place.exists() else "a link that leads nowhere"
            inside = "" if place == folder else f": {place}"
            raise UsageError(f"{flag} {folder} is {'in ' * bool(inside)}{what}{inside}.", _NAME)
        folder.exists()  # a name that no system takes shows here
    except OSError as error:
        raise UsageError(
            f"{flag} {str(folder)[:80]} cannot be a folder: {error}.", _NAME
        ) from error
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{flag} {folder}: {place} may not be written to.", _NAME)


def writable_file(path: str | Path) -> None:
    """UsageError where `--out path` cannot become a file; what is there would be replaced."""
    target = Path(path)
    writable("--out", target.absolute().parent)
    if target.is_dir():
        raise UsageError(f"--out {target} is a folder.", "Name a file.")


def _sweep(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote; only inside a run."""
    if any((folder / name).exists() for name in _MARKS):
        for pattern in (".*.tmp", "checkpoints/.*.tmp", "model/.*.tmp"):
            for left in folder.glob(pattern):
                left.unlink(missing_ok=True)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
