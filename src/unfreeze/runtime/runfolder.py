"""A run's folder: who may write into it, its metrics and its log."""

import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from unfreeze.errors import UsageError
from unfreeze.runtime.atomic import disk_full, is_full, write_text

_MARKS = ("config.toml", "metrics.jsonl", "log.txt", "model", "demo.json")


class RunFolder:
    """The folder of one run: `metrics.jsonl`, `log.txt`, `checkpoints/`, `model/` and the rest."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls, path: str | Path, *, resume: str | None = None, overwrite: bool = False
    ) -> "RunFolder":
        """A folder ready to be written; with `overwrite` it is empty now."""
        folder = allowed(path, resume=resume, overwrite=overwrite)
        if overwrite and folder.is_dir():
            _empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def file(self, name: str) -> Path:
        """The path of one of the run's files."""
        return self.path / name

    def metric(self, record: dict[str, Any]) -> None:
        """Append one JSON object to metrics.jsonl."""
        self._append("metrics.jsonl", json.dumps(record))

    def log(self, text: str) -> None:
        """Append one dated line to log.txt."""
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def metrics(self) -> list[dict[str, Any]]:
        """Every record of metrics.jsonl; a last line cut by a crash is left out."""
        return read_metrics(self.path)

    def rewind_metrics(self, step: int) -> None:
        """Drop what was recorded after `step`: a resumed run writes those lines again."""
        kept = [r for r in self.metrics() if r.get("step", 0) <= step]
        write_text(self.file("metrics.jsonl"), "".join(json.dumps(r) + "\n" for r in kept))

    def _append(self, name: str, line: str) -> None:
        try:
            with self.file(name).open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            if is_full(error):
                raise disk_full(self.file(name)) from error
            raise


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, in order; [] where there is none."""
    path = Path(folder) / "metrics.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # only a line cut by a crash
            records.append(json.loads(line))
    return records


def allowed(path: str | Path, *, resume: str | None = None, overwrite: bool = False) -> Path:
    """The path, if a run may go there; UsageError otherwise. Nothing is touched.

    A folder with something in it needs `resume` or `overwrite`; the latter only for a run's.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file.", "Name a new folder.")
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


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
