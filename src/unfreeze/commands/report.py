"""`report`: writes a run's HTML report and plots from its files."""

import shlex
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from unfreeze.config.commands import ReportSettings
from unfreeze.config.layering import load_settings
from unfreeze.reports.results_models import report_display
from unfreeze.runs.after_run import warn_on_failure
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.atomic import write_bytes, write_text
from unfreeze.runtime.console import Console
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.output_files import is_our_image, is_our_page, refuse_foreign
from unfreeze.runtime.run_folder import RunFolder

WRITTEN = {
    "report.html": is_our_page,
    "curves.png": is_our_image,
    "prototypes.png": is_our_image,
}


@dataclass(frozen=True, repr=False)
class ReportResult(Displayed):
    """Paths of the files that were written; None for a plot without data."""

    run: str
    report: str
    curves: str | None
    prototypes: str | None

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return report_display(self)


@python_call(ReportSettings)
def report(
    run: str | PathLike[str], *, progress: bool | None = None, **settings: Any
) -> ReportResult:
    """Write `report.html`, `curves.png` and `prototypes.png` into the run folder.

    Needs one of `config.toml`, `metrics.jsonl` and `demo.json` in the folder, else UsageError;
    other files of the run are optional.
    """
    return run_report(
        load_settings(ReportSettings, {"run": run, **settings}), python_console(progress)
    )


@isolated()
def run_report(settings: ReportSettings, console: Console) -> ReportResult:
    """The same from a settings object."""
    # importing matplotlib writes a font cache: only where plots are made
    from unfreeze.reports.charts import panels
    from unfreeze.reports.curves import draw
    from unfreeze.reports.page import run_page
    from unfreeze.reports.run_reader import contact_sheet, read_run

    findings = read_run(settings.run)
    folder, figures = Path(settings.run), panels(findings)
    for name, check in WRITTEN.items():
        refuse_foreign("report:", folder / name, check)
    curves = _write(folder / "curves.png", draw(figures) if figures else None)
    prototypes = findings.prototypes
    prototypes_path = _write(
        folder / "prototypes.png", contact_sheet(prototypes) if prototypes is not None else None
    )
    write_text(folder / "report.html", run_page(findings))
    return ReportResult(settings.run, str(folder / "report.html"), curves, prototypes_path)


def write_report_or_warn(run: str, console: Console) -> None:
    """Write the report of a finished run; a failure is only a warning."""
    again = f"unfreeze report {shlex.quote(run)}"
    with warn_on_failure("The report could not be written", RunFolder(run), console, again=again):
        report(run)


def _write(path: Path, image: bytes | None) -> str | None:
    if image is None:
        return None
    write_bytes(path, image)
    return str(path)
