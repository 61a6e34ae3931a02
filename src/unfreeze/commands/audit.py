"""`audit`: finds labels that look wrong, from out-of-fold probabilities; changes nothing."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.config.field import inputs_of
from unfreeze.config.labelling import AuditSettings
from unfreeze.config.layering import load_settings
from unfreeze.config.shared import Data, data_name
from unfreeze.data.index.folder_layout import SPLIT_NAMES
from unfreeze.data.index.index import Index
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate.report import thumbnails
from unfreeze.data.validate.warnings import dataset_warnings
from unfreeze.errors import UsageError
from unfreeze.evaluation.checks import significantly_above
from unfreeze.evaluation.warnings import RunWarning
from unfreeze.exports.write import replacing_folder
from unfreeze.reports.audit_page import AuditedImage, AuditPage, audit_page
from unfreeze.reports.page import format_number, format_percent
from unfreeze.reports.results_data import audit_display, audit_lead, audit_method
from unfreeze.runs.inference import on_device
from unfreeze.runs.labelling.audit import (
    DUPLICATE,
    LabelAudit,
    audit_labels,
    backbone_for,
    compute_features,
    labelled_by_path,
)
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.atomic import write_json, write_text
from unfreeze.runtime.console import Console, printable
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.output_files import check_writable, is_json_with, refuse_inputs
from unfreeze.runtime.run_folder import is_run_folder
from unfreeze.runtime.text_layout import write_csv

RESULT, SUSPECTS, LABELS, PAGE = "audit.json", "suspects.csv", "labels.csv", "audit.html"
FILES = (RESULT, SUSPECTS, LABELS, PAGE)
COLUMNS = ("path", "label", "suggested", "probability", "score", "reason")
DIGEST = "labels_sha256"  # in audit.json: of labels.csv as it was written
SHOWN, GROUPS, COPIES = 240, 40, 8  # images, groups of copies and copies of a group on the page


@dataclass(frozen=True, repr=False)
class AuditResult(Displayed):
    """The audited `images` and the `suspects`, most suspicious first.

    A suspect has `path`, `label`, `suggested` (another class), `probability` (of that class),
    `score` (0..1, one minus the probability of its label) and `reason`: duplicate or confident
    learning. `conflicts`: copies of one image under several labels. `left_out`: images that cannot
    be read. `accuracy`: share of labels that the classifiers predict. Probabilities are out of
    fold. `page`, `table`, `labels`: the written files.
    """

    data: str
    images: int
    suspects: list[dict[str, Any]]
    conflicts: list[list[str]]
    left_out: int
    classes: list[str]
    accuracy: float
    arch: str
    weights: str
    folds: int
    out: str
    page: str
    table: str
    labels: str
    warnings: list[RunWarning]

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return audit_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per suspect."""
        return self.suspects


@python_call(AuditSettings)
def audit(
    data: Data, out: str | PathLike[str], *, progress: bool | None = None, **settings: Any
) -> AuditResult:
    """Find labels of `data` that look wrong, and write them to the folder `out`.

    DataError if a class has fewer images than `folds`; WeightsError for weights that were trained
    on these labels.
    """
    values = {"data": data, "out": str(out), **settings}
    return run_audit(load_settings(AuditSettings, values), python_console(progress))


@isolated()
def run_audit(settings: AuditSettings, console: Console) -> AuditResult:
    """The same from a settings object."""
    s = settings
    out = check_audit_folder(s.out, inputs_of(s))  # check before the work, not after
    source = open_source(s.data, data_root=s.data_root, console=console)
    labelled = labelled_by_path(s, source)
    for note in labelled.notes:
        console.say(note)
    network = on_device(backbone_for(s, labelled, console), s.device, s.precision)
    computed = compute_features(s, labelled, network, console)
    with console.progress("cross-validation", 1) as advance:
        found = audit_labels(s, computed)
        advance(1)
    result = _result(s, found, network.card.arch, out, computed.left_out)
    for warning in result.warnings:
        console.warn(warning.message)
    _write(result, found, labelled, out)
    return result


def check_audit_folder(path: str | None, inputs: Sequence[str] = ()) -> Path:
    """The output folder `path`; UsageError if an audit may not be written there.

    It is new, empty, or holds an earlier audit whose labels.csv was not edited. Nothing is changed.
    """
    if not path:
        raise UsageError("audit needs an output folder.", "Add --out DIR.")
    folder = Path(path)
    check_writable("--out", folder)
    for name in ("", *FILES):
        refuse_inputs("--out", folder / name, inputs)
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    if is_run_folder(folder):
        raise UsageError(f"--out {folder} is a run folder.", "Name another folder.")
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in FILES)
    about = folder / RESULT
    if foreign or not about.is_file() or not is_json_with("suspects", DIGEST)(about):
        holds = foreign[0] if foreign else "files"
        raise UsageError(
            f"--out {folder} holds {holds}, which an audit did not write, so nothing was written.",
            "Name a new folder.",
        )
    labels = folder / LABELS
    if labels.is_file() and _digest(labels) != json.loads(about.read_bytes())[DIGEST]:
        raise UsageError(
            f"{labels} was edited since the audit that wrote it, so it was not overwritten.",
            "Name a new folder, or move the file away.",
        )
    return folder


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _result(
    s: AuditSettings, found: LabelAudit, arch: str, out: Path, left_out: int
) -> AuditResult:
    index = found.index
    suspects = [
        {
            "path": printable(index.paths[one.position]),
            "label": index.classes[index.labels[one.position]],
            "suggested": index.classes[one.suggested],
            "probability": one.probability,
            "score": one.score,
            "reason": one.reason,
        }
        for one in found.suspects
    ]
    return AuditResult(
        data=data_name(s.data),
        images=len(index),
        suspects=suspects,
        conflicts=[[printable(index.paths[p]) for p in group] for group in found.conflicts],
        left_out=left_out,
        classes=list(index.classes),
        accuracy=found.accuracy,
        arch=arch,
        weights=s.weights,
        folds=s.folds,
        out=str(out),
        page=str(out / PAGE),
        table=str(out / SUSPECTS),
        labels=str(out / LABELS),
        warnings=audit_warnings(s, found),
    )


def audit_warnings(s: AuditSettings, found: LabelAudit) -> list[RunWarning]:
    """Warnings about the labels, and about classifiers that are no better than guessing."""
    index = found.index
    warnings = [RunWarning(code, message) for code, message in dataset_warnings(index)]
    majority = float(np.bincount(index.labels).max()) / len(index)
    correct = round(found.accuracy * len(index))
    if not significantly_above(correct, len(index), majority):
        warnings.append(
            RunWarning(
                "nothing_learned",
                f"The classifiers predict {format_percent(found.accuracy)} of the labels, no more "
                f"than guessing the largest class does ({format_percent(majority)}): the suspects "
                "mean nothing. Use other --weights.",
            )
        )
    elif s.weights == "none":
        warnings.append(
            RunWarning(
                "random_features",
                "The backbone is random (--weights none): its features tell classes apart by "
                "colour and texture at most. Trained weights find more wrong labels.",
            )
        )
    return warnings


def _write(result: AuditResult, found: LabelAudit, labelled: Index, out: Path) -> None:
    """Write the four files; the folder is replaced when all are complete."""
    page = audit_page(_page(result, found))
    with replacing_folder(out) as folder:
        write_text(folder / PAGE, page)
        write_csv(
            folder / SUSPECTS, COLUMNS, ([row[c] for c in COLUMNS] for row in result.suspects)
        )
        _write_labels(folder / LABELS, labelled, found, result.suspects)
        write_json(folder / RESULT, {**asdict(result), DIGEST: _digest(folder / LABELS)})


def _write_labels(
    path: Path, index: Index, found: LabelAudit, suspects: Sequence[dict[str, Any]]
) -> None:
    """Write the labels of `index`, all labelled images, for `--labels`; suspects first."""
    position_of = {name: position for position, name in enumerate(index.paths)}
    positions = [position_of[found.index.paths[one.position]] for one in found.suspects]
    row_of = dict(zip(positions, suspects, strict=True))
    others = [position for position in range(len(index)) if position not in row_of]
    columns = ["path", "label", "suggested", "probability", "score"]
    columns += ["split"] if index.splits.any() else []
    columns += ["group"] if index.groups is not None else []
    lines = []
    for position in [*row_of, *others]:
        row = dict(row_of.get(position, {}))
        row |= {"path": index.paths[position], "label": index.classes[index.labels[position]]}
        row["split"] = SPLIT_NAMES[index.splits[position]]
        row["group"] = index.groups[position] if index.groups is not None else ""
        lines.append([row.get(column, "") for column in columns])
    write_csv(path, columns, lines)


def _page(result: AuditResult, found: LabelAudit) -> AuditPage:
    index = found.index
    suggested = {
        one.position: row for one, row in zip(found.suspects, result.suspects, strict=True)
    }
    ordered = [one.position for one in found.suspects if one.reason != DUPLICATE]
    shown = ordered[:SHOWN]
    groups = [group[:COPIES] for group in found.conflicts[:GROUPS]]
    thumbs = thumbnails(index, {*shown, *(p for group in groups for p in group)})

    def image(position: int) -> AuditedImage:
        row = suggested.get(position, {})
        return AuditedImage(
            printable(index.paths[position]),
            index.classes[index.labels[position]],
            row.get("suggested", ""),
            row.get("probability", 0.0),
            thumbs.get(position),
        )

    figures = [
        ("images", format_number(result.images)),
        ("suspects", format_number(len(result.suspects))),
        ("images under several labels", format_number(len(result.conflicts))),
        ("labels predicted", format_percent(result.accuracy)),
        ("backbone", result.arch),
    ]
    figures += [("cannot be read", format_number(result.left_out))] if result.left_out else []
    return AuditPage(
        name=printable(result.data),
        lead=audit_lead(result),
        figures=figures,
        warnings=[printable(warning.message) for warning in result.warnings],
        method=audit_method(result),
        labels=LABELS,
        conflicts=[[image(p) for p in group] for group in groups],
        suspects=[image(position) for position in shown],
        pairs=[
            (row["label"], row["suggested"])
            for row in result.suspects
            if row["reason"] != DUPLICATE
        ],
        more_conflicts=max(0, len(found.conflicts) - GROUPS),
        more_suspects=len(ordered) - len(shown),
    )
