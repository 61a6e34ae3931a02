"""Files of a run folder to open, and commands to run next."""

import csv
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# files of a run folder that a result lists, most useful first
FILES = (
    ("report", "report.html"),
    ("model", "model"),
    ("predictions", "predictions.csv"),
    ("mistakes", "mistakes.csv"),
    ("evaluation", "evaluation.json"),
    ("table", "compare.csv"),
    ("curves", "curves.png"),
    ("prototypes", "prototypes.png"),
    ("left out", "problems.csv"),
)


def files_of(run: str | Path, *names: str) -> list[tuple[str, str]]:
    """(label, path) of the existing `FILES`, or of those in `names`."""
    files = []
    for label, name in FILES:
        path = Path(run) / name
        if (not names or name in names) and path.exists() and not _empty(path):
            files.append((label, str(path)))
    return files


def _empty(path: Path) -> bool:
    """Whether it is a problems.csv without rows."""
    if path.name != "problems.csv":
        return False
    with path.open("rb") as stream:
        return sum(1 for _ in zip(stream, range(2), strict=False)) < 2


def settings_of(run: str | Path) -> dict[str, Any]:
    """The settings in a run's config.toml; {} if it is missing or unreadable."""
    try:
        return tomllib.loads((Path(run) / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def named(data: str | Sequence[str] | None) -> str:
    """DATA, quoted for a shell."""
    if not data:
        return "DATA"
    return shlex.join([data] if isinstance(data, str) else list(data))


def commands(run: str | Path) -> list[str]:
    """Commands to run next, for a run folder."""
    settings, run_path = settings_of(run), shlex.quote(str(run))
    data = named(settings.get("data"))
    if "nmb_prototypes" in settings:
        data += "" if _labelled(Path(run) / "split.csv") else " --labels LABELS.csv"
        out = shlex.quote(str(Path(run).with_name(f"{Path(run).name}-finetuned")))
        return [f"unfreeze finetune {data} --weights {run_path} --freeze all --out {out}"]
    if "seeds" in settings:
        return []
    options = "".join(
        f" --{name.replace('_', '-')} {shlex.quote(str(settings[name]))}"
        for name in ("labels", "split_from")
        if settings.get(name)
    )
    evaluate = f"unfreeze evaluate {run_path} {data}{options}"
    return [evaluate, f"unfreeze predict {run_path} IMAGE..."]


def _labelled(path: Path) -> bool:
    """Whether the first row of split.csv has a label."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return bool(next(csv.DictReader(stream), {}).get("label"))
