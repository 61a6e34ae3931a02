"""`predict` and `load`: the most likely class of each image, and the model itself."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.config.commands import PredictSettings
from unfreeze.config.field import flag, inputs_of
from unfreeze.config.layering import load_settings
from unfreeze.data.images.decode import decode
from unfreeze.data.images.in_memory import as_image_list, is_path, pixels_of
from unfreeze.data.images.preprocess import Pixels
from unfreeze.data.index.mask_pairs import has_masks, mask_rows
from unfreeze.data.index.rows import image_rows
from unfreeze.data.sources.builtin import ArraySource
from unfreeze.data.sources.csv import FileTableSource
from unfreeze.data.sources.open import builtin_name, is_archive_or_table, open_source
from unfreeze.data.sources.source import Source
from unfreeze.data.texts.preprocess import TextPreprocess
from unfreeze.errors import UsageError
from unfreeze.reports.results_models import (
    predict_display,
    predictions_file_display,
    task_predictions_display,
)
from unfreeze.runs.explanations import explained_images
from unfreeze.runs.finetuning.task_settings import open_samples
from unfreeze.runs.inference import Outputs, on_device, reader_of_row, run_inference
from unfreeze.runs.mask_prediction import predict_masks
from unfreeze.runs.predictions_out import (
    Copy,
    check_new_folder,
    format_of,
    is_our_output,
    prediction_columns,
    prediction_row,
    refuse_without_files,
    sort_into,
    write_json_lines,
    write_predictions_as,
    write_sorted,
)
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.console import Console, QuietConsole
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.output_files import check_output_file
from unfreeze.runtime.text_layout import write_csv
from unfreeze.text import as_text
from unfreeze.transfer.known_images import (
    Decisions,
    KnownImages,
    LogitsAndFeatures,
    load_known_images,
)
from unfreeze.transfer.predictor import (
    Classifier,
    ImageInput,
    InferenceNetwork,
    Prediction,
    Read,
    TaskModel,
    load_fine_tuned,
)


@dataclass(frozen=True, repr=False)
class WrittenPredictions(Displayed):
    """The CSV file of predictions, and their number."""

    out: str
    images: int

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return predictions_file_display(self)


class Predictions(Displayed, list[Prediction]):
    """The predictions in the order of the images."""

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return predict_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per image: `path, label, probability`, and what else was asked for."""
        return [dict(prediction) for prediction in self]

    def cells(self) -> tuple[tuple[str, ...], list[list[str]]]:
        """(columns, rows) of the table on stdout."""
        if not self:
            return prediction_columns(()), []
        first = self[0]
        columns = prediction_columns(
            tuple(map(str, first.probabilities or first.top or ())),  # names, or as many places
            len(first.top or ()),
            probabilities=first.probabilities is not None,
            unknown=first.set is not None,
        )
        return columns, [prediction_row(prediction, 4) for prediction in self]


class TaskPredictions(Displayed, list[dict[str, Any]]):
    """The predictions of another task than classification, in the order of the images.

    `table`: each as texts and numbers.
    """

    def __init__(
        self, predictions: Iterable[dict[str, Any]], table: Sequence[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(predictions)
        self.table: Sequence[dict[str, Any]] = self if table is None else table

    def cells(self) -> tuple[tuple[str, ...], list[list[str]]]:
        """(columns, rows) of the table on stdout."""
        columns = tuple(self.table[0]) if self.table else ("path",)
        shown = [[f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()]
                 for row in self.table]  # fmt: skip
        return columns, shown

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return task_predictions_display(self.table)

    def rows(self) -> list[dict[str, Any]]:
        """One row per image: `path` and the task's values."""
        return list(self)


@isolated()
def load(run: str | Path) -> Classifier | TaskModel:
    """The model of a run folder or its `model/` folder, on the CPU and in eval mode.

    It has `.classes`, `.preprocess` and `.predict(files or arrays)`; its forward pass maps
    normalised images float32 [B, 3, S, S] to logits [B, C]. WeightsError if there is no model.
    """
    return load_fine_tuned(run)


class _Input(NamedTuple):
    path: str
    read: Read
    copy: Copy | None = None  # the bytes of the file; None if there is no file


@python_call(PredictSettings)
@isolated()
def predict(
    run: str | PathLike[str],
    images: ImageInput | Iterable[ImageInput],
    *,
    progress: bool | None = None,
    **settings: Any,
) -> Predictions | TaskPredictions:
    """Predict the most likely class of each image, or of each text.

    `images`: one image or an iterable of paths (files, folders, archives), Pillow images, arrays
    [H, W, 3] or encoded bytes; for a model of texts, texts and files of texts. What has no path is
    named by its position. Unreadable files are left out; DataError if none can be read, UsageError
    for other types and without images.
    """
    inputs = as_image_list(images)
    paths = [os.fsdecode(image) for image in inputs if is_path(image)]
    config = load_settings(PredictSettings, {"run": str(run), "images": paths, **settings})
    named = iter(config.images)
    items = [next(named) if is_path(image) else image for image in inputs]
    return _predictions(config, python_console(progress), items)


@isolated()
def run_predict(
    settings: PredictSettings, console: Console
) -> Predictions | TaskPredictions | WrittenPredictions:
    """The same from a settings object; with `--out` returns the path of the CSV file."""
    predictions = _predictions(settings, console, settings.images)
    return (
        WrittenPredictions(settings.out, len(predictions))
        if settings.out and not settings.json
        else predictions
    )


def _predictions(
    s: PredictSettings, console: Console, images: Sequence[Any]
) -> Predictions | TaskPredictions:
    if not images:
        raise UsageError("predict needs images.", "Give files, folders or archives after RUN.")
    network = load_fine_tuned(s.run)
    dense = isinstance(network, TaskModel) and network.task.dense
    _check_task(s, network)
    form = format_of(s.format, s.out)
    known = None
    if isinstance(network, Classifier) and s.unknown is not None:
        known = load_known_images(s.run, network.card)
        known.check(s.unknown)  # before the work, as the outputs are
    if isinstance(network, TaskModel):
        network.task.configure(s)
    columns = (
        network.columns
        if isinstance(network, TaskModel)
        else prediction_columns(
            network.classes, s.top, probabilities=s.probabilities, unknown=known is not None
        )
    )
    folders = _new_folders(s)
    # check before the work, not after
    out = None
    if s.out and not dense:
        ours = is_our_output(form, columns)
        out = check_output_file(s.out, ours=ours, inputs=inputs_of(s))
    network = on_device(network, s.device, s.precision)
    inputs = _all_inputs(images, network, s, console)
    if folders.sort_into is not None:
        refuse_without_files([item.copy for item in inputs])
    names = [item.path for item in inputs]
    reads = (item.read for item in inputs)
    if isinstance(network, TaskModel) and dense:
        return TaskPredictions(predict_masks(network, names, reads, s, console))
    if isinstance(network, TaskModel):
        outputs = run_inference(network, names, reads, batch_size=s.batch_size, console=console)
        _warn_cropped(outputs, console)
        values = network.label([names[row] for row in outputs.kept.tolist()], outputs.values)
        cells = [network.cells(value) for value in values]
        if out:
            _write_values(form, out, columns, values, cells)
        return TaskPredictions(values, cells)
    outputs, decisions = _classified(network, known, names, reads, s, console)
    _warn_cropped(outputs, console)
    readable = [names[position] for position in outputs.kept.tolist()]
    options: dict[str, Any] = {"top": s.top, "probabilities": s.probabilities}
    predictions = network.label(readable, outputs.values, **options, decisions=decisions)
    if out:
        write_predictions_as(form, out, columns, predictions, Path(s.run).name)
    kept = [inputs[position] for position in outputs.kept.tolist()]
    _fill_folders(folders, network, kept, predictions, outputs, console)
    return Predictions(predictions)


class _Folders(NamedTuple):
    sort_into: Path | None
    explain: Path | None


def _new_folders(s: PredictSettings) -> _Folders:
    """The folders to write images into; UsageError if one is not new or empty."""
    folders = _Folders(
        *(
            check_new_folder(flag(name), path, inputs_of(s)) if path is not None else None
            for name, path in (("sort_into", s.sort_into), ("explain", s.explain))
        )
    )
    if None not in folders and len({os.path.realpath(str(folder)) for folder in folders}) == 1:
        raise UsageError(
            "--sort-into and --explain name one folder, so one would overwrite the other's images.",
            "Name two folders.",
        )
    return folders


def _fill_folders(
    folders: _Folders,
    network: Classifier,
    kept: Sequence[_Input],
    predictions: Sequence[Prediction],
    outputs: Outputs,
    console: Console,
) -> None:
    """Copy the images that could be read, and write what each prediction comes from."""
    paths, labels = [item.path for item in kept], [p.label for p in predictions]
    if folders.sort_into is not None:
        sort_into(folders.sort_into, paths, [item.copy for item in kept], labels)
    if folders.explain is not None:
        classes = outputs.values.argmax(dim=1)
        reads = [item.read for item in kept]
        images = explained_images(network, paths, reads, classes, console)
        write_sorted(folders.explain, paths, labels, images, ".png")


def _all_inputs(
    images: Sequence[Any], network: Classifier | TaskModel, s: PredictSettings, console: Console
) -> list[_Input]:
    """Every image or text of the files, folders, archives and objects given."""
    if isinstance(network.preprocess, TextPreprocess):
        return list(_text_inputs(images, network.preprocess, network.card))
    intensity = network.preprocess.intensity
    dense = isinstance(network, TaskModel) and network.task.dense
    return [
        item
        for position, image in enumerate(images)
        for item in (
            _inputs(image, s.data_root, intensity, console, masked=dense)
            if isinstance(image, str)
            else [_Input(str(position), partial(pixels_of, image, intensity))]
        )
    ]


def _classified(
    network: Classifier,
    known: KnownImages | None,
    names: Sequence[str],
    reads: Iterable[Read],
    s: PredictSettings,
    console: Console,
) -> tuple[Outputs, Decisions | None]:
    """Logits [N, C]; with `known` also which images to answer."""
    options: dict[str, Any] = {"batch_size": s.batch_size, "console": console}
    if known is None or s.unknown is None:
        return run_inference(network, names, reads, **options), None
    both = InferenceNetwork(
        LogitsAndFeatures(network.network, network.head), network.card, network.preprocess
    )
    both.precision = network.precision
    outputs = run_inference(both, names, reads, keep=lambda o, _: known.scored(o), **options)
    logits, scores = outputs.values[:, :-1], outputs.values[:, -1].double().numpy()
    decisions = known.decide(logits, scores, network.card.temperature, s.unknown)
    return replace(outputs, values=logits), decisions


def _warn_cropped(outputs: Outputs, console: Console) -> None:
    if outputs.cropped is not None and outputs.cropped.warning is not None:
        console.warn(outputs.cropped.warning)


def _write_values(
    form: str,
    out: Path,
    columns: Sequence[str],
    values: list[dict[str, Any]],
    cells: Sequence[dict[str, Any]],
) -> None:
    if form == "jsonl":
        write_json_lines(out, values)
    else:
        write_csv(out, columns, ([str(v) for v in row.values()] for row in cells))


def _check_task(s: PredictSettings, network: Classifier | TaskModel) -> None:
    """UsageError for settings that the model's task does not have."""
    if s.overlay and not (isinstance(network, TaskModel) and network.task.dense):
        raise UsageError("--overlay is for segmentation.", "Omit it.")
    classes = {
        "top": s.top > 1,
        "probabilities": s.probabilities,
        "sort_into": bool(s.sort_into),
        "unknown": s.unknown is not None,
        "explain": bool(s.explain),
    }
    for name, given in classes.items():
        if given and isinstance(network, TaskModel) and name not in network.task.supports:
            raise UsageError(f"{flag(name)} is for classification.", f"Omit {flag(name)}.")
    if s.format is not None and isinstance(network, TaskModel) and network.task.dense:
        raise UsageError("--format is that of a file; segmentation writes masks.", "Omit it.")
    texts = isinstance(network.preprocess, TextPreprocess)
    if s.format == "label-studio" and (isinstance(network, TaskModel) or texts):
        raise UsageError("--format label-studio is for classes of images.", "Use jsonl or csv.")
    if s.sort_into and texts:
        raise UsageError("--sort-into copies images; this model is for texts.", "Omit it.")
    if s.explain and texts:
        raise UsageError("--explain shows images; this model is for texts.", "Omit it.")


def _text_inputs(
    items: Sequence[Any], preprocess: TextPreprocess, card: ModelCard
) -> Iterator[_Input]:
    """Texts: those of tables, .txt files and folders; `-`: lines of stdin; else the item itself.

    A text that is given is named by its position among the items, a line by its number.
    """
    for position, item in enumerate(items):
        if not isinstance(item, str):
            raise UsageError("This model is for texts.", "Give texts, files or folders.")
        if item == "-":
            for number, line in enumerate(sys.stdin, 1):
                yield _Input(f"-:{number}", partial(preprocess.encode, line.rstrip("\r\n")))
        elif _exists(item):
            path, source = Path(item), open_samples(item, card, data_root=None)
            preprocess.attach(source)
            # tables name their rows by the file's name
            prefix = f"{path.parent if path.is_file() else path}/".removeprefix("./")
            for row, name in enumerate(source.names):
                yield _Input(as_text(prefix + name), reader_of_row(source, row))
        else:
            yield _Input(str(position), partial(preprocess.encode, item))


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or with characters that names cannot have
        return False


def _inputs(
    name: str,
    data_root: str,
    intensity: str,
    console: Console | None = None,
    *,
    masked: bool = False,
) -> Iterator[_Input]:
    """The images of a file, folder or archive; `masked`: without masks beside them."""
    path = Path(name)
    if path.is_file() and not is_archive_or_table(path.name):
        yield _Input(name, partial(_decode_file, path, intensity), path.read_bytes)
        return
    source = open_source(name, data_root=data_root)
    source.intensity = intensity
    for note in source.notes:
        (console or QuietConsole()).say(note)
    # paths in a list are relative to its folder; members of an archive are inside it
    prefix = as_text(f"{path.parent if isinstance(source, FileTableSource) else name}/")
    masks = set(mask_rows(source)) if masked and has_masks(source) else ()
    for row in _rows(source):
        if row in masks:
            continue
        inner = source.names[row]
        shown = ("" if builtin_name(name) else prefix) + inner
        # built-in data has pixels, no files
        copy = None if isinstance(source, ArraySource) else partial(source.read, row)
        yield _Input(shown, reader_of_row(source, row), cast(Copy | None, copy))


def _rows(source: Source) -> Iterable[int]:
    """Rows to predict: all rows of a list, otherwise those that are image files."""
    return range(len(source)) if source.listed else image_rows(source)


def _decode_file(path: Path, intensity: str) -> Pixels:
    return decode(path.read_bytes(), intensity)
