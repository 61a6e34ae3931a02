"""`export`: a run's model in another tool's format, verified by comparing outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfreeze.config.commands import ExportSettings
from unfreeze.config.field import inputs_of
from unfreeze.config.layering import load_settings
from unfreeze.data.images.preprocess import Pixels, Preprocess
from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import open_source
from unfreeze.data.texts.preprocess import TextPreprocess
from unfreeze.errors import DataError, WeightsError
from unfreeze.exports.exported_model import ExportedModel, load_exported_model
from unfreeze.exports.format import export_format
from unfreeze.exports.readme import write_about, write_prepare, write_readme
from unfreeze.exports.verify import ExportVerification, verify_export
from unfreeze.exports.write import check_output_folder, replacing_folder
from unfreeze.models.text import TextClassifier
from unfreeze.reports.results_models import export_display
from unfreeze.runs.finetuning.task_settings import open_samples
from unfreeze.runs.inference import readers_of
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.console import Console
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.tasks.segmentation.crops import mirrored

IMAGES = 16  # number of images to compare outputs on


@dataclass(frozen=True, repr=False)
class ExportResult(Displayed):
    """The exported files, and how much their outputs differ from the run's model.

    `matched`, `max_difference`: of the files as the other tool loads them; `compared_on`: on which
    images.
    """

    out: str
    to: str
    arch: str
    kind: str
    classes: list[str]
    files: list[str]
    matched: bool
    max_difference: float
    tolerance: float
    compared_on: str

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return export_display(self)


@python_call(ExportSettings)
def export(
    run: str | PathLike[str],
    to: str,
    out: str | PathLike[str],
    *,
    progress: bool | None = None,
    **settings: Any,
) -> ExportResult:
    """Export the model of `run` to torchvision, timm, safetensors, torchscript or onnx.

    UsageError if the format does not support the architecture; WeightsError if the outputs differ,
    and then nothing is written.
    """
    values = {"run": str(run), "to": to, "out": str(out), **settings}
    return run_export(load_settings(ExportSettings, values), python_console(progress))


@isolated()
def run_export(settings: ExportSettings, console: Console) -> ExportResult:
    """The same from a settings object."""
    s, exporter = settings, export_format(settings.to)
    out = check_output_folder(s.out, overwrite=s.overwrite, inputs=inputs_of(s))
    subject = load_exported_model(s.run)
    exporter.check(subject)
    if isinstance(subject.preprocess, TextPreprocess):
        inputs, compared_on = _texts(s, subject, subject.preprocess)
    else:
        images, compared_on = _images(s, subject.preprocess)
        inputs = _inputs(images, subject.preprocess)
    with replacing_folder(out) as folder:
        exporter.write(subject, folder)
        comparison = verify_export(exporter, subject, folder, inputs)
        if not comparison.matched:
            raise _mismatch(str(s.to), subject.card.arch, comparison)
        if not subject.texts:
            write_prepare(folder)
        write_readme(folder, subject, exporter, comparison, compared_on=compared_on)
        about = write_about(folder, subject, str(s.to), comparison, compared_on=compared_on)
    console.say(f"{out}/README.md shows how to load the model.")
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
    )


def _mismatch(to: str, arch: str, comparison: ExportVerification) -> WeightsError:
    what = f"by {comparison.max_difference:.3g} (tolerance {comparison.tolerance:.3g})"
    if comparison.differing:
        what = f"in {len(comparison.differing):,} tensors, the first is {comparison.differing[0]}"
    return WeightsError(
        f"{arch} exported to {to} differs from the run's model {what}; nothing was written.",
        "Use --to safetensors, and please report this.",
    )


def _images(s: ExportSettings, preprocess: Preprocess) -> tuple[list[Pixels], str]:
    """(images, their description): from `--data`, else the run's views, else random noise."""
    if s.data:
        source = open_source(s.data, data_root=s.data_root)
        source.intensity = preprocess.intensity
        index = build_index(source, strange_classes=True)
        if not len(index):
            raise DataError(f"No images in {s.data}.", "Give other images with --data.")
        positions = np.unique(np.linspace(0, len(index) - 1, IMAGES).astype(np.int64))
        images = [read() for read in readers_of(index.take(positions))]
        return images, f"{len(images)} images of {Path(s.data).name}"
    views = Path(s.run) / "views.npz"
    if views.is_file():
        with np.load(views, allow_pickle=False) as arrays:
            flat = arrays["views"].reshape(-1, *arrays["views"].shape[-3:])
        chosen = flat[np.unique(np.linspace(0, len(flat) - 1, IMAGES).astype(np.int64))]
        return list(chosen), f"{len(chosen)} views of the run's training images"
    rng, side = np.random.default_rng(0), preprocess.image_size
    noise = rng.integers(0, 256, (IMAGES, side, side, 3), np.uint8)
    return list(noise), f"{IMAGES} images of random noise (use --data for real ones)"


def _texts(
    s: ExportSettings, subject: ExportedModel, preprocess: TextPreprocess
) -> tuple[Tensor, str]:
    """(tokens [B, L, 2], their description): of `--data`, else random tokens."""
    if s.data:
        source = open_samples(s.data, subject.card, data_root=s.data_root)
        preprocess.attach(source)
        rows = np.unique(np.linspace(0, len(source) - 1, IMAGES).astype(np.int64))
        tokens = preprocess.collate([source.sample(row) for row in rows.tolist()])
        return tokens, f"{len(rows)} texts of {Path(s.data).name}"
    if not isinstance(subject.network, TextClassifier):
        raise TypeError(f"{subject.card.arch} is no text network")
    tokens = subject.network.example_input(IMAGES, torch.device("cpu"))
    return tokens, f"{IMAGES} texts of random tokens (use --data for real ones)"


def _inputs(images: Sequence[Pixels], preprocess: Preprocess) -> Tensor:
    if preprocess.fit == "tile":  # the first tile of each image
        height, width = preprocess.shape
        images = [mirrored(image, preprocess.shape)[:height, :width] for image in images]
    return torch.stack([preprocess.apply(image) for image in images])
