"""`report`: writes a run's HTML report and plots from its files."""

import shlex
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from unfreeze.api.keywords import python_call
from unfreeze.reports.results_models import drawn
from unfreeze.runtime.afterwards import afterwards
from unfreeze.runtime.atomic import write_bytes, write_text
from unfreeze.runtime.console import Console
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.outputs import is_our_image, is_our_page, refuse_foreign
from unfreeze.runtime.runfolder import RunFolder
from unfreeze.settings.build import layered
from unfreeze.settings.use import ReportSettings

WRITTEN = {
    "report.html": is_our_page,
    "curves.png": is_our_image,
    "prototypes.png": is_our_image,
}


@dataclass(frozen=True, repr=False)
class Report(Displayed):
    """Paths of the files that were written; None for a plot without data."""

    run: str
    report: str
    curves: str | None
    prototypes: str | None

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return drawn(self)


@python_call(ReportSettings)
def report(run: str | PathLike[str], *, progress: bool | None = None, **settings: Any) -> Report:
    """Write `report.html`, `curves.png` and `prototypes.png` into the run folder.

    Needs one of `config.toml`, `metrics.jsonl` and `demo.json` in the folder, else UsageError;
    other files of the run are optional.
    """
    return run_report(layered(ReportSettings, {"run": run, **settings}), python_console(progress))


@isolated()
def run_report(settings: ReportSettings, console: Console) -> Report:
    """The same from a settings object."""
    # importing matplotlib writes a font cache: only where plots are made
    from unfreeze.reports.curves import draw
    from unfreeze.reports.findings import read_findings
    from unfreeze.reports.gallery import sheet
    from unfreeze.reports.page import page
    from unfreeze.reports.panels import panels

    findings = read_findings(settings.run)
    folder, figures = Path(settings.run), panels(findings)
    for name, check in WRITTEN.items():
        refuse_foreign("report:", folder / name, check)
    curves = _write(folder / "curves.png", draw(figures) if figures else None)
    prototypes = findings.prototypes
    prototypes_path = _write(
        folder / "prototypes.png", sheet(prototypes) if prototypes is not None else None
    )
    write_text(folder / "report.html", page(findings))
    return Report(settings.run, str(folder / "report.html"), curves, prototypes_path)


def redrawn(run: str, console: Console) -> None:
    """Write the report of a finished run; a failure is only a warning."""
    again = f"unfreeze report {shlex.quote(run)}"
    with afterwards("The report could not be written", RunFolder(run), console, again=again):
        report(run)


def _write(path: Path, image: bytes | None) -> str | None:
    if image is None:
        return None
    write_bytes(path, image)
    return str(path)
