"""What the commands that look at data show at their end, from the fields of their results."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from unfreeze.reports.results_runs import messages
from unfreeze.runtime.console import worded
from unfreeze.runtime.display import Display
from unfreeze.runtime.layout import Table

FOREIGN = 5  # files that `cache` names because it leaves them
CLASSES = 40  # that a table on the terminal lists


def cached(r: Any) -> Display:
    """Of a `CacheResult`."""
    rows = [
        (one.name, one.holds, f"{one.files:,}", amount(one.bytes), one.bound) for one in r.entries
    ]
    lead = f"{amount(r.bytes)} are cached in {r.folder}."
    if r.cleared:
        lead = f"{amount(r.cleared)} were removed. {lead}"
    notes = [
        f"Not removed, because unfreeze did not write it: {path}" for path in r.foreign[:FOREIGN]
    ]
    if len(r.foreign) > FOREIGN:
        notes.append(f"{len(r.foreign) - FOREIGN:,} more were not removed for the same reason.")
    return Display(
        lead=[lead],
        warnings=[f"Not removed: {reason}. Try again when no run uses it." for reason in r.stuck],
        tables=[Table(("cache", "holds", "files", "size", "limit"), rows)],
        notes=[*notes, "Set UNFREEZE_CACHE to use another folder."],
        next=["unfreeze cache --clear"] if r.bytes else [],
    )


def amount(size: int) -> str:
    """`1.8 GiB`, `24.5 MiB`, `3 KiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 2**10:,.0f} KiB"


def scanned(r: Any) -> Display:
    """Of a `ScanResult`."""
    broken, known = r.pictures - r.usable, r.pictures - r.decoded
    counts = Counter((one["left_out"], one["reason"]) for one in r.problems)
    order = sorted(counts, key=lambda kind: (not kind[0], -counts[kind], kind[1]))
    rows = []
    for left_out, reason in order:
        first = next(p for p in r.problems if (p["left_out"], p["reason"]) == (left_out, reason))
        what = "no" if left_out else "yes"
        example = f"{first['path']}: {first['detail']}" if first["detail"] else first["path"]
        rows.append((reason, f"{counts[left_out, reason]:,}", what, example))
    seen = f"{r.decoded:,} decoded in {r.seconds:.1f} s"
    return Display(
        lead=[scan_lead(r)],
        warnings=messages(r),
        tables=[Table(("finding", "files", "used", "for example"), rows)],
        notes=[
            *spared(r.rules),
            seen + (f", {known:,} cached from an earlier scan." if known else "."),
        ],
        files=[(what, p) for what, p in (("page", r.page), ("table", r.table)) if p],
        next=_after_scan(r, broken),
    )


def scan_lead(r: Any) -> str:
    """How many images can be used."""
    broken = r.pictures - r.usable
    said = f"{r.usable:,} of {r.pictures:,} images can be used"
    said += f", {broken:,} cannot" if broken else ""
    other = worded(r.other, "other file is", "other files are")
    return f"{said}; {other} ignored." if r.other else f"{said}."


def _after_scan(r: Any, broken: int) -> list[str]:
    data = _typed(r.data)
    if broken and not r.quarantined:
        return [f"unfreeze scan {data} --quarantine broken"]
    if not r.page:
        return [f"unfreeze scan {data} --out scan"]
    return [f"unfreeze pretrain {data} --dry-run"]


# rule of other tools -> what it would do
_RULES = {
    "jpeg without JFIF in its first ten bytes": "would be deleted by tools that look for JFIF in "
    "the first ten bytes",
    "a name without a usual ending": "would be skipped by tools that go by file extensions",
}


def spared(rules: dict[str, int]) -> list[str]:
    """What a simpler check would have thrown away."""
    return [
        f"{worded(count, 'usable image', 'usable images')} {_RULES[rule]}."
        for rule, count in rules.items()
        if count
    ]


def shown(r: Any) -> Display:
    """Of a `ShowResult`: classes with their counts, and what to think of."""
    splits = list(r.splits)
    head = ("class", *("images" if split == "all" else split for split in splits))
    rows = [
        (name, *(f"{row[split]:,}" for split in splits))
        for name, row in list(r.counts.items())[:CLASSES]
    ]
    if (more := len(r.counts) - CLASSES) > 0:
        rows.append((f"and {more:,} more", *[""] * len(splits)))
    data = _typed(r.data)
    labelled = f"unfreeze finetune {data} --dry-run"
    return Display(
        lead=[show_lead(r)],
        warnings=messages(r),
        tables=[Table(head, rows)] if rows else [],
        notes=r.notes,
        files=[("page", r.out)],
        next=[f"unfreeze pretrain {data} --dry-run", *([labelled] if r.classes else [])],
    )


def show_lead(r: Any) -> str:
    """How many images there are."""
    classes = f" of {len(r.classes):,} classes" if r.classes else " without labels"
    left = f", {len(r.problems):,} cannot be read" if r.problems else ""
    return f"{r.images:,} images{classes}{left}."


def _typed(data: str) -> str:
    """DATA as one types it; of several sources only that there are some."""
    return "DATA" if ", " in data and not Path(data).exists() else shlex.quote(data)
