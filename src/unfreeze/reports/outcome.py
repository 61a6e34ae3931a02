"""What a run's folder holds that people open, and which command comes next."""

import csv
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# what stands in a run's folder, in the order of interest
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
    """(what, path) of the files that exist; of `names`, or of all that there can be."""
    found = []
    for what, name in FILES:
        path = Path(run) / name
        if (not names or name in names) and path.exists() and not _empty(path):
            found.append((what, str(path)))
    return found


def _empty(path: Path) -> bool:
    """A table of problems with nothing below its head is none."""
    if path.name != "problems.csv":
        return False
    with path.open("rb") as stream:
        return sum(1 for _ in zip(stream, range(2), strict=False)) < 2


def settings_of(run: str | Path) -> dict[str, Any]:
    """The settings in a run's config.toml; {} where there is none, or it cannot be read."""
    try:
        return tomllib.loads((Path(run) / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def named(data: str | Sequence[str] | None) -> str:
    """DATA as one types it."""
    if not data:
        return "DATA"
    return shlex.join([data] if isinstance(data, str) else list(data))


def commands(run: str | Path) -> list[str]:
    """What to type after the command that made this run."""
    s, place = settings_of(run), shlex.quote(str(run))
    data = named(s.get("data"))
    if "nmb_prototypes" in s:
        data += "" if _labelled(Path(run) / "split.csv") else " --labels LABELS.csv"
        beside = shlex.quote(str(Path(run).with_name(f"{Path(run).name}-finetuned")))
        return [f"unfreeze finetune {data} --weights {place} --freeze all --out {beside}"]
    if "seeds" in s:
        return []
    told = "".join(
        f" --{name.replace('_', '-')} {shlex.quote(str(s[name]))}"
        for name in ("labels", "split_from")
        if s.get(name)
    )
    evaluate = f"unfreeze evaluate {place} {data}{told}"
    return [evaluate, f"unfreeze predict {place} IMAGE..."]


def _labelled(path: Path) -> bool:
    """Whether the first image that a run used has a label."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return bool(next(csv.DictReader(stream), {}).get("label"))
