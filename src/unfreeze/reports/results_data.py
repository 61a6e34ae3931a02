"""What commands about data and labels print at the end, from the fields of their results."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from unfreeze.reports.results_runs import warning_messages
from unfreeze.runtime.console import pluralised
from unfreeze.runtime.display import Display
from unfreeze.runtime.text_layout import TextTable

FOREIGN = 5  # files of others that `cache` lists
CLASSES = 40  # rows of a table on the terminal
SUSPECTS = 20  # of an audit, the same


def cache_display(r: Any) -> Display:
    """Display of a `CacheResult`."""
    rows = [
        (entry.name, entry.holds, f"{entry.files:,}", format_bytes(entry.bytes), entry.bound)
        for entry in r.entries
    ]
    lead = f"{format_bytes(r.bytes)} are cached in {r.folder}."
    if r.cleared:
        lead = f"{format_bytes(r.cleared)} were removed. {lead}"
    notes = [
        f"Not removed, because unfreeze did not write it: {path}" for path in r.foreign[:FOREIGN]
    ]
    if len(r.foreign) > FOREIGN:
        notes.append(f"{len(r.foreign) - FOREIGN:,} more were not removed for the same reason.")
    return Display(
        lead=[lead],
        warnings=[f"Not removed: {reason}. Try again when no run uses it." for reason in r.stuck],
        tables=[TextTable(("cache", "holds", "files", "size", "limit"), rows)],
        notes=[*notes, "Set UNFREEZE_CACHE to use another folder."],
        next=["unfreeze cache --clear"] if r.bytes else [],
    )


def format_bytes(size: int) -> str:
    """`1.8 GiB`, `24.5 MiB`, `3 KiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 2**10:,.0f} KiB"


def scan_display(r: Any) -> Display:
    """Display of a `ScanResult`."""
    broken, known = r.pictures - r.usable, r.pictures - r.decoded
    counts = Counter((problem["left_out"], problem["reason"]) for problem in r.problems)
    order = sorted(counts, key=lambda kind: (not kind[0], -counts[kind], kind[1]))
    rows = []
    for left_out, reason in order:
        first = next(p for p in r.problems if (p["left_out"], p["reason"]) == (left_out, reason))
        used = "no" if left_out else "yes"
        example = f"{first['path']}: {first['detail']}" if first["detail"] else first["path"]
        rows.append((reason, f"{counts[left_out, reason]:,}", used, example))
    decoded = f"{r.decoded:,} decoded in {r.seconds:.1f} s"
    return Display(
        lead=[scan_lead(r)],
        warnings=warning_messages(r),
        tables=[TextTable(("finding", "files", "used", "for example"), rows)],
        notes=[
            *usable_despite(r.rules),
            decoded + (f", {known:,} cached from an earlier scan." if known else "."),
        ],
        files=[(label, path) for label, path in (("page", r.page), ("table", r.table)) if path],
        next=_after_scan(r, broken),
    )


def scan_lead(r: Any) -> str:
    """A sentence: how many images can be used."""
    broken = r.pictures - r.usable
    usable = f"{r.usable:,} of {r.pictures:,} images can be used"
    usable += f", {broken:,} cannot" if broken else ""
    other = pluralised(r.other, "other file is", "other files are")
    return f"{usable}; {other} ignored." if r.other else f"{usable}."


def _after_scan(r: Any, broken: int) -> list[str]:
    data = _quoted(r.data)
    if broken and not r.quarantined:
        return [f"unfreeze scan {data} --quarantine broken"]
    if not r.page:
        return [f"unfreeze scan {data} --out scan"]
    return [f"unfreeze pretrain {data} --dry-run"]


# check of other tools -> what it would do
_RULES = {
    "jpeg without JFIF in its first ten bytes": "would be deleted by tools that look for JFIF in "
    "the first ten bytes",
    "a name without a usual ending": "would be skipped by tools that go by file extensions",
}


def usable_despite(rules: dict[str, int]) -> list[str]:
    """Sentences on usable images that simpler checks would reject."""
    return [
        f"{pluralised(count, 'usable image', 'usable images')} {_RULES[rule]}."
        for rule, count in rules.items()
        if count
    ]


def shown(r: Any) -> Display:
    """Display of a `ShowResult`: class counts and notes."""
    splits = list(r.splits)
    head = ("class", *("images" if split == "all" else split for split in splits))
    rows = [
        (name, *(f"{row[split]:,}" for split in splits))
        for name, row in list(r.counts.items())[:CLASSES]
    ]
    if (more := len(r.counts) - CLASSES) > 0:
        rows.append((f"and {more:,} more", *[""] * len(splits)))
    data = _quoted(r.data)
    labelled = f"unfreeze finetune {data} --dry-run"
    return Display(
        lead=[show_lead(r)],
        warnings=warning_messages(r),
        tables=[TextTable(head, rows)] if rows else [],
        notes=r.notes,
        files=[("page", r.out)],
        next=[f"unfreeze pretrain {data} --dry-run", *([labelled] if r.classes else [])],
    )


def suggest_display(r: Any) -> Display:
    """Display of a `SuggestResult`."""
    shown = [("labelled", r.labelled), ("unreadable", r.unreadable)]
    shown.append(("near-duplicates left out", r.near_duplicates))
    data, out = _quoted(r.data), shlex.quote(r.out)
    weights = shlex.quote(r.run)
    return Display(
        lead=[
            f"{r.train + r.test:,} of {r.images:,} images to label: {r.train:,} for training, "
            f"chosen as {r.by} ({r.reason}), and {r.test:,} at random for the test set."
        ],
        facts=[(name, f"{count:,}") for name, count in shown if count],
        notes=[
            "Fill in the column `label`, by hand or with `unfreeze label`; rows without a label "
            "are ignored."
        ],
        files=[("table", r.out)],
        next=[
            f"unfreeze label {data} --out {out}",
            f"unfreeze finetune {data} --labels {out} --weights {weights} --freeze all --out RUN",
        ],
    )


def label_display(r: Any) -> Display:
    """Display of a `LabelResult`."""
    data, out = _quoted(r.data), shlex.quote(r.out)
    weights = f" --weights {shlex.quote(r.run)}" if r.run else ""
    rows = [(name, f"{count:,}") for name, count in list(r.classes.items())[:CLASSES]]
    if (more := len(r.classes) - CLASSES) > 0:
        rows.append((f"and {more:,} more", ""))
    given = pluralised(r.given, "label was", "labels were")
    return Display(
        lead=[f"{given} given; {r.labelled:,} of {r.images:,} images have one."],
        facts=[("unreadable", f"{r.unreadable:,}")] if r.unreadable else [],
        tables=[TextTable(("class", "images"), rows)] if rows else [],
        files=[("table", r.out)] if r.given else [],
        next=[f"unfreeze finetune {data} --labels {out}{weights} --freeze all --out RUN"]
        if len(r.classes) > 1
        else [],
    )


def show_lead(r: Any) -> str:
    """A sentence: how many images and classes there are."""
    classes = f" of {len(r.classes):,} classes" if r.classes else " without labels"
    unreadable = sum(problem["left_out"] for problem in r.problems)
    parts = [f", {unreadable:,} cannot be read"] if unreadable else []
    if others := len(r.problems) - unreadable:
        parts.append(f", {others:,} other {'problem' if others == 1 else 'problems'}")
    return f"{r.images:,} images{classes}{''.join(parts)}."


def _quoted(data: str) -> str:
    """DATA, quoted for a shell; `DATA` itself for several sources."""
    return "DATA" if ", " in data and not Path(data).exists() else shlex.quote(data)


def audit_display(r: Any) -> Display:
    """Display of an `AuditResult`: the most suspicious labels."""
    rows: list[tuple[str, ...]] = [
        (one["path"], one["label"], one["suggested"], f"{100 * one['probability']:.0f} %",
         f"{one['score']:.3f}", "duplicate" if one["reason"] == "duplicate" else "")
        for one in r.suspects[:SUSPECTS]
    ]  # fmt: skip
    if (more := len(r.suspects) - SUSPECTS) > 0:
        rows.append((f"and {more:,} more", *[""] * 5))
    head = ("path", "label", "suggested", "probability", "score", "")
    data = _quoted(r.data)
    return Display(
        lead=[audit_lead(r)],
        warnings=warning_messages(r),
        tables=[TextTable(head, rows)] if rows else [],
        notes=[audit_method(r)],
        files=[("page", r.page), ("table", r.table), ("labels to edit", r.labels)],
        next=[f"unfreeze finetune {data} --labels {shlex.quote(r.labels)} --out RUN"],
    )


def audit_lead(r: Any) -> str:
    """A sentence: how many labels look wrong."""
    count = len(r.suspects)
    lead = f"{count:,} of {r.images:,} labels {'is' if count == 1 else 'are'} suspect"
    if r.conflicts:
        several = pluralised(len(r.conflicts), "image has", "images have")
        lead += f"; {several} copies under other labels"
    unread = pluralised(r.left_out, "image", "images")
    return f"{lead}; {unread} cannot be read." if r.left_out else f"{lead}."


def audit_method(r: Any) -> str:
    """A sentence: where the probabilities come from."""
    return (
        f"Classifiers on frozen features of {r.arch} ({r.folds} folds, none judges an image it was "
        f"trained on) predict {100 * r.accuracy:.1f} % of the labels. A suspect is not proof: look "
        "at the image."
    )
