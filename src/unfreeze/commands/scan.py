"""`scan`: decodes every image of a dataset and lists all problems; deletes nothing."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unfreeze.config.commands import ScanSettings
from unfreeze.config.field import inputs_of
from unfreeze.config.layering import load_settings
from unfreeze.config.shared import Data, data_name
from unfreeze.data.index.index import Index, build_index
from unfreeze.data.index.mask_pairs import has_masks
from unfreeze.data.sources.open import open_source
from unfreeze.data.sources.source import Source
from unfreeze.data.validate.check_cache import CheckCache
from unfreeze.data.validate.precheck import ImageProblem, write_problems_csv
from unfreeze.data.validate.quarantine import (
    QuarantinedFile,
    add_to_ignore_list,
    quarantine,
    refuse_inside_dataset,
    require_ignore_list,
    require_quarantine_folder,
    undo,
)
from unfreeze.data.validate.report import DatasetReport, check_dataset, thumbnails
from unfreeze.data.validate.warnings import cropped_away, dataset_warnings
from unfreeze.errors import UsageError
from unfreeze.reports.results_data import scan_display, scan_lead, usable_despite
from unfreeze.runs.python_call import python_call
from unfreeze.runtime import atomic
from unfreeze.runtime.console import Console, printable
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.output_files import (
    check_output_file,
    check_writable,
    is_csv_with,
    is_our_page,
    refuse_inputs,
)
from unfreeze.runtime.run_folder import is_run_folder

SAMPLES = 12  # thumbnails per kind of problem
TWINS = 40  # groups of duplicates on the page
TABLE, PAGE = "problems.csv", "scan.html"


@dataclass(frozen=True, repr=False)
class ScanResult(Displayed):
    """The findings of a scan.

    `files`: number of all files; `pictures`: image files by name or content; `usable`: those that
    decode; `other`: other files. `problems`: `path, reason, detail, left_out`. `duplicates`,
    `near_duplicates`: groups of paths. `rules`: number of usable images that the checks of other
    tools would reject. `decoded`: images decoded now; the others were known from earlier scans.
    `quarantined`: files moved or added to the exclusions. `restored`: files restored by --undo.
    `page`, `table`: files written to --out. `warnings`: likely mistakes, `code` and `message`.
    """

    data: str
    files: int
    pictures: int
    usable: int
    other: int
    problems: list[dict[str, Any]]
    duplicates: list[list[str]]
    near_duplicates: list[list[str]]
    rules: dict[str, int]
    decoded: int
    seconds: float
    quarantined: int = 0
    restored: int = 0
    page: str | None = None
    table: str | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return scan_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per problem: `path, reason, detail, left_out`."""
        return self.problems


@python_call(ScanSettings)
def scan(data: Data, *, progress: bool | None = None, **settings: Any) -> ScanResult:
    """Decode every image of `data` in worker processes and list all problems.

    DataError if the data cannot be read at all; a broken image is a finding, not an error.
    """
    return run_scan(
        load_settings(ScanSettings, {"data": data, **settings}), python_console(progress)
    )


@isolated()
def run_scan(settings: ScanSettings, console: Console) -> ScanResult:
    """The same from a settings object."""
    s = settings
    if s.undo and s.quarantine:
        raise UsageError("--undo and --quarantine exclude each other.", "Give only one of them.")
    out = _output_folder(s)
    restored, notes = _undo(s, console)
    source = open_source(s.data, data_root=s.data_root, console=console)
    if s.quarantine:
        _refuse_quarantine(s, source, Path(s.quarantine))  # check before the work, not after
    if has_masks(source):
        index, clinic = _check_with_masks(s, source, console, notes)
        result = _result(s, index, clinic, notes)
    else:
        index = build_index(source, strange_classes=True)
        notes += list(index.notes)
        clinic = check_dataset(index, workers=s.workers, console=console, seconds=s.seconds)
        result = replace(_result(s, index, clinic, notes), warnings=_warnings(index, clinic))
    for note in index.notes:
        console.say(note)
    for warning in result.warnings:
        console.warn(warning["message"])
    if s.quarantine:
        moved = _quarantine(s, source, clinic, console)
        result = replace(result, quarantined=len(moved))
    if out:
        result = _write(replace(result, restored=restored), out, clinic)
    return replace(result, restored=restored)


def _check_with_masks(
    s: ScanSettings, source: Source, console: Console, notes: list[str]
) -> tuple[Index, DatasetReport]:
    """The images without the masks, and the problems of both; adds to `notes`."""
    # imported here: it needs torch, which takes seconds and other scans do without
    from unfreeze.tasks.segmentation.checks import class_notes, images_with_masks, mask_problems

    masked = images_with_masks(source)
    notes += [*masked.index.notes, *class_notes(masked)]
    clinic = check_dataset(masked.index, workers=s.workers, console=console, seconds=s.seconds)
    problems = [*clinic.problems, *mask_problems(masked)]
    return masked.index, replace(clinic, problems=problems)


def _output_folder(s: ScanSettings) -> Path | None:
    """The folder of `--out`; UsageError if files must not be written there."""
    if not s.out:
        return None
    folder = Path(s.out)
    check_writable("--out", folder)
    if is_run_folder(folder):
        raise UsageError(f"--out {folder} is a run folder.", "Use another folder.")
    check_output_file(folder / PAGE, ours=is_our_page, inputs=inputs_of(s))
    check_output_file(folder / TABLE, ours=is_csv_with(ImageProblem._fields), inputs=inputs_of(s))
    return folder


def _refuse_quarantine(s: ScanSettings, source: Source, folder: Path) -> None:
    refuse_inputs("--quarantine", folder, inputs_of(s))
    require_quarantine_folder(folder)
    if source.kind == "several":
        raise UsageError("--quarantine needs a single source.", "Scan each source separately.")
    if source.kind == "folder":
        refuse_inside_dataset(Path(source.where), folder)
    else:
        require_ignore_list(source)


def _undo(s: ScanSettings, console: Console) -> tuple[int, list[str]]:
    if not s.undo:
        return 0, []
    back, notes = undo(Path(s.undo))
    console.say(f"{len(back):,} files were restored.")
    for sentence in notes:
        console.say(sentence)
    return len(back), notes


def _result(s: ScanSettings, index: Index, clinic: DatasetReport, notes: list[str]) -> ScanResult:
    return ScanResult(
        data=data_name(s.data),
        files=len(index.source) + index.source.skipped,
        pictures=len(index),
        usable=len(clinic.usable),
        other=index.other,
        problems=[_row(problem) for problem in clinic.problems],
        duplicates=_paths(index, clinic.duplicates),
        near_duplicates=_paths(index, clinic.near),
        rules=clinic.rules,
        decoded=clinic.decoded,
        seconds=round(clinic.seconds, 3),
        notes=[printable(note) for note in notes],
    )


def _warnings(index: Index, clinic: DatasetReport) -> list[dict[str, str]]:
    warnings = dataset_warnings(index)
    cropped = cropped_away(*clinic.sizes.T)
    if cropped is not None:
        warnings.append(("cropped_away", cropped.sentence))
    return [{"code": code, "message": printable(message)} for code, message in warnings]


def _row(problem: ImageProblem) -> dict[str, Any]:
    return {
        **problem._asdict(),
        "path": printable(problem.path),
        "detail": printable(problem.detail),
    }


def _paths(index: Index, groups: list[list[int]]) -> list[list[str]]:
    return [[printable(index.paths[position]) for position in group] for group in groups]


def _quarantine(
    s: ScanSettings, source: Source, clinic: DatasetReport, console: Console
) -> list[QuarantinedFile]:
    """Move unusable files away, or exclude them; findings about the others stay cached."""
    folder = Path(s.quarantine or "")
    broken = [
        (problem.path, problem.reason, problem.detail)
        for problem in clinic.problems
        if problem.left_out and problem.reason != "left out"
    ]
    if source.kind != "folder":
        moved = add_to_ignore_list(source, folder, broken)
        console.say(
            f"{len(moved):,} files were added to the list of exclusions that later runs use."
        )
        return moved
    moved = quarantine(Path(source.where), folder, broken)
    console.say(f"{len(moved):,} files were moved to {folder}; `--undo {folder}` restores them.")
    if moved and len(moved) < len(source):
        after = CheckCache(open_source(source.where))
        after.take_over(CheckCache(source))
        after.save()
    return moved


def _write(result: ScanResult, folder: Path, findings: DatasetReport) -> ScanResult:
    """Write problems.csv and scan.html."""
    from unfreeze.reports.scan_page import clinic

    folder.mkdir(parents=True, exist_ok=True)
    table, page = folder / TABLE, folder / PAGE
    write_problems_csv(table, findings.problems)
    atomic.write_text(page, clinic(_page_data(result, findings)))
    return replace(result, page=str(page), table=str(table))


def _page_data(result: ScanResult, findings: DatasetReport) -> Any:
    from unfreeze.reports.dataset import ImageRow
    from unfreeze.reports.page import format_number
    from unfreeze.reports.scan_page import ProblemGroup, ScanPage

    index = findings.index
    position_of = {path: position for position, path in enumerate(index.paths)}
    groups = [*findings.duplicates, *findings.near]
    by_kind = {
        kind: [p for p in findings.problems if (p.left_out, p.reason) == kind]
        for kind, _ in _counted(findings.problems)
    }
    samples = {
        kind: [] if kind[0] else [position_of[problem.path] for problem in of_kind[:SAMPLES]]
        for kind, of_kind in by_kind.items()
    }
    twins = [group[:SAMPLES] for group in groups[:TWINS]]
    thumbs = thumbnails(
        index, {position for positions in [*samples.values(), *twins] for position in positions}
    )

    def strip(positions: list[int]) -> ImageRow:
        return ImageRow(
            "", [(printable(index.paths[p]), thumbs[p]) for p in positions if p in thumbs]
        )

    kinds = [
        ProblemGroup(kind[1], kind[0], [_row(problem) for problem in of_kind], strip(samples[kind]))
        for kind, of_kind in by_kind.items()
    ]
    figures = [
        ("images", format_number(result.pictures)),
        ("usable", format_number(result.usable)),
        ("left out", format_number(result.pictures - result.usable)),
        ("other files", format_number(result.other)),
        ("groups of duplicates", format_number(len(groups))),
    ]
    return ScanPage(
        name=printable(result.data),
        lead=scan_lead(result),
        figures=figures,
        notes=[
            *(problem["message"] for problem in result.warnings),
            *result.notes,
            *usable_despite(result.rules),
        ],
        kinds=kinds,
        twins=[strip(positions) for positions in twins],
        more_twins=max(0, len(groups) - TWINS),
    )


def _counted(problems: list[ImageProblem]) -> list[tuple[tuple[bool, str], int]]:
    """Kinds of problems with their counts: those left out first, then by count."""
    counts = Counter((problem.left_out, problem.reason) for problem in problems)
    return sorted(counts.items(), key=lambda item: (not item[0][0], -item[1], item[0][1]))
