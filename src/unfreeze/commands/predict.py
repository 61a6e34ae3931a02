"""`predict` and `load`: the most likely class of each image, and the model itself."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from unfreeze.runs.finetuning.task_settings import open_samples
from unfreeze.runs.inference import on_device, reader_of_row, run_inference
from unfreeze.runs.mask_prediction import predict_masks
from unfreeze.runs.predictions_out import (
    Copy,
    check_sort_folder,
    prediction_columns,
    prediction_row,
    refuse_without_files,
    sort_into,
)
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.console import Console, QuietConsole
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.output_files import check_output_file, is_csv_with
from unfreeze.runtime.text_layout import write_csv
from unfreeze.text import as_text
from unfreeze.transfer.predictor import (
    Classifier,
    ImageInput,
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
        """One row per image: `path, label, probability`."""
        return [dict(prediction) for prediction in self]


class TaskPredictions(Displayed, list[dict[str, Any]]):
    """The predictions of another task than classification, in the order of the images.

    `cells`: each as texts and numbers, for a table.
    """

    def __init__(
        self, predictions: Iterable[dict[str, Any]], cells: Sequence[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(predictions)
        self.cells: Sequence[dict[str, Any]] = self if cells is None else cells

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return task_predictions_display(self.cells)

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
    if isinstance(network, TaskModel):
        network.task.configure(s)
    columns = (
        network.columns
        if isinstance(network, TaskModel)
        else prediction_columns(network.classes, s.top, probabilities=s.probabilities)
    )
    folder = check_sort_folder(s.sort_into, inputs_of(s)) if s.sort_into is not None else None
    # check before the work, not after
    out = None
    if s.out and not dense:
        out = check_output_file(s.out, ours=is_csv_with(columns), inputs=inputs_of(s))
    network = on_device(network, s.device, s.precision)
    intensity = network.preprocess.intensity
    if isinstance(network.preprocess, TextPreprocess):
        inputs = list(_text_inputs(images, network.preprocess, network.card))
    else:
        inputs = [
            item
            for position, image in enumerate(images)
            for item in (
                _inputs(image, s.data_root, intensity, console, masked=dense)
                if isinstance(image, str)
                else [_Input(str(position), partial(pixels_of, image, intensity))]
            )
        ]
    if folder is not None:
        refuse_without_files([item.copy for item in inputs])
    names = [item.path for item in inputs]
    reads = (item.read for item in inputs)
    if isinstance(network, TaskModel) and dense:
        return TaskPredictions(predict_masks(network, names, reads, s, console))
    outputs = run_inference(network, names, reads, batch_size=s.batch_size, console=console)
    if outputs.cropped is not None and outputs.cropped.warning is not None:
        console.warn(outputs.cropped.warning)
    readable = [names[position] for position in outputs.kept.tolist()]
    if isinstance(network, TaskModel):
        values = network.label(readable, outputs.values)
        cells = [network.cells(value) for value in values]
        if out:
            write_csv(out, columns, ([str(v) for v in row.values()] for row in cells))
        return TaskPredictions(values, cells)
    predictions = network.label(readable, outputs.values, top=s.top, probabilities=s.probabilities)
    if out:
        write_csv(out, columns, map(prediction_row, predictions))
    if folder is not None:
        labels = [prediction.label for prediction in predictions]
        kept = [inputs[position] for position in outputs.kept.tolist()]
        sort_into(folder, readable, [item.copy for item in kept], labels)
    return Predictions(predictions)


def _check_task(s: PredictSettings, network: Classifier | TaskModel) -> None:
    """UsageError for settings that the model's task does not have."""
    if s.overlay and not (isinstance(network, TaskModel) and network.task.dense):
        raise UsageError("--overlay is for segmentation.", "Omit it.")
    classes = {"top": s.top > 1, "probabilities": s.probabilities, "sort_into": bool(s.sort_into)}
    for name, given in classes.items():
        if given and isinstance(network, TaskModel) and name not in network.task.supports:
            raise UsageError(f"{flag(name)} is for classification.", f"Omit {flag(name)}.")
    if s.sort_into and isinstance(network.preprocess, TextPreprocess):
        raise UsageError("--sort-into copies images; this model is for texts.", "Omit it.")


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
