"""`export`: a run's model in another tool's format, verified by comparing outputs."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from unfreeze import __version__
from unfreeze.config.commands import HUB, ExportSettings
from unfreeze.config.field import inputs_of
from unfreeze.config.layering import load_settings
from unfreeze.errors import UsageError, WeightsError
from unfreeze.exports.exported_model import ExportedModel, load_exported_model
from unfreeze.exports.format import ExportFormat, export_format
from unfreeze.exports.int8 import check_int8
from unfreeze.exports.readme import write_about, write_prepare, write_readme
from unfreeze.exports.to_hub import without_paths
from unfreeze.exports.verify import ExportVerification, verify_export, verify_on_images
from unfreeze.exports.write import check_output_folder, replacing_folder
from unfreeze.reports.results_models import export_display
from unfreeze.runs.exporting.hub import HubRepository, HubUpload, open_repository
from unfreeze.runs.exporting.inputs import inputs_to_compare
from unfreeze.runs.exporting.int8 import Int8Comparison, labelled_images, write_int8
from unfreeze.runs.model_cards import recorded_evaluation
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.console import Console
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console

# formats that hold a program; OpenVINO does not resize as Pillow does in the last bit
WITH_PREPROCESSING = ("onnx", "torchscript")


@dataclass(frozen=True, repr=False)
class ExportResult(Displayed):
    """The exported files, and how much their outputs differ from the run's model.

    `matched`, `max_difference`: of the files as the other tool loads them; `compared_on`: on which
    images. `with_preprocessing`: the program takes images uint8 [H, W, 3] of any size.
    `int8`: the quantised file beside it, and its accuracy. `hub`: where it was uploaded; `out` is
    None if no copy was asked for.
    """

    out: str | None
    to: str
    arch: str
    kind: str
    classes: list[str]
    files: list[str]
    matched: bool
    max_difference: float
    tolerance: float
    compared_on: str
    with_preprocessing: bool
    int8: Int8Comparison | None = None
    hub: HubUpload | None = None

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return export_display(self)


@python_call(ExportSettings)
def export(
    run: str | PathLike[str],
    to: str,
    out: str | PathLike[str] | None = None,
    *,
    progress: bool | None = None,
    **settings: Any,
) -> ExportResult:
    """Export the model of `run` to another tool's format, or upload it to the Hugging Face Hub.

    UsageError if the format does not support the architecture; WeightsError if the outputs differ,
    and then nothing is written.
    """
    values = {"run": str(run), "to": to, "out": None if out is None else str(out), **settings}
    return run_export(load_settings(ExportSettings, values), python_console(progress))


@isolated()
def run_export(settings: ExportSettings, console: Console) -> ExportResult:
    """The same from a settings object."""
    s, exporter = settings, export_format(settings.to, settings.repo or "")
    if s.with_preprocessing and s.to not in WITH_PREPROCESSING:
        raise UsageError(
            f"--to {s.to} stores weights without a program, so it cannot hold the preprocessing.",
            f"Use --to {' or '.join(WITH_PREPROCESSING)}, or omit --with-preprocessing.",
        )
    if s.to != HUB and (s.repo or s.private):
        raise UsageError("--repo and --private are for --to hub.", "Omit them, or use --to hub.")
    with _output_folder(s) as out:
        repository = open_repository(s) if s.to == HUB else None
        subject = load_exported_model(s.run, with_preprocessing=s.with_preprocessing)
        if repository is not None:
            subject = without_paths(subject)
        exporter.check(subject)
        result = _write(s, exporter, subject, out, console)
        if repository is None:
            console.say(f"{out}/README.md shows how to load the model.")
            return result
        return _uploaded(result, repository, out, kept=bool(s.out))


@contextlib.contextmanager
def _output_folder(s: ExportSettings) -> Iterator[Path]:
    """The folder to write to; a temporary one for an upload without --out."""
    if s.out or s.to != HUB:
        yield check_output_folder(s.out, overwrite=s.overwrite, inputs=inputs_of(s))
        return
    with tempfile.TemporaryDirectory(prefix="unfreeze-export-") as temporary:
        yield Path(temporary) / "export"


def _uploaded(
    result: ExportResult, repository: HubRepository, out: Path, *, kept: bool
) -> ExportResult:
    upload = repository.upload(out, f"{result.arch}, exported by unfreeze {__version__}")
    return replace(result, out=str(out) if kept else None, hub=upload)


def _write(
    s: ExportSettings, exporter: ExportFormat, subject: ExportedModel, out: Path, console: Console
) -> ExportResult:
    """Write, verify and describe the export in `out`; nothing is left there if that fails."""
    labelled = None
    if s.int8:
        check_int8(subject, str(s.to))
        labelled = labelled_images(s, subject)
    inputs, compared_on = inputs_to_compare(s, subject)
    with replacing_folder(out) as folder:
        exporter.write(subject, folder)
        if isinstance(inputs, Tensor):
            comparison = verify_export(exporter, subject, folder, inputs)
        else:
            comparison = verify_on_images(exporter, subject, folder, inputs)
        if not comparison.matched:
            raise _mismatch(str(s.to), subject.card.arch, comparison)
        int8 = write_int8(subject, labelled, folder, console) if labelled else None
        if not subject.texts:
            write_prepare(folder)
        verified = (comparison, compared_on, asdict(int8) if int8 else None)
        evaluation = recorded_evaluation(s.run, subject.card)
        library = "timm" if s.to == "timm" else "unfreeze"
        write_readme(folder, subject, exporter, *verified, evaluation, library)
        about = write_about(folder, subject, str(s.to), *verified)
    return ExportResult(
        out=str(out),
        to=str(s.to),
        arch=subject.card.arch,
        kind=subject.card.kind,
        classes=list(subject.card.classes),
        files=sorted(path.name for path in out.iterdir()),
        matched=about["matched"],
        max_difference=comparison.max_difference,
        tolerance=comparison.tolerance,
        compared_on=compared_on,
        with_preprocessing=s.with_preprocessing,
        int8=int8,
    )


def _mismatch(to: str, arch: str, comparison: ExportVerification) -> WeightsError:
    what = f"by {comparison.max_difference:.3g} (tolerance {comparison.tolerance:.3g})"
    if comparison.differing:
        what = f"in {len(comparison.differing):,} tensors, the first is {comparison.differing[0]}"
    return WeightsError(
        f"{arch} exported to {to} differs from the run's model {what}; nothing was written.",
        "Use --to safetensors, and please report this.",
    )
