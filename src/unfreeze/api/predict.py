"""`predict`: the most likely class of each image, with its probability."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from unfreeze.api.keywords import python_call
from unfreeze.api.serving import placed, read_row, send
from unfreeze.data.decode import decode
from unfreeze.data.drafts import image_rows
from unfreeze.data.given import image_list, is_path, pixels_of
from unfreeze.data.preprocess import Pixels
from unfreeze.data.sources import Source
from unfreeze.data.sources.filelist import FileListSource
from unfreeze.data.sources.open import built_in, is_collection, open_source
from unfreeze.errors import UsageError
from unfreeze.reports.results_models import predicted, written
from unfreeze.runtime.console import Console, Quiet
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.outputs import output_file, table_of
from unfreeze.runtime.tables import write_csv
from unfreeze.settings.build import layered
from unfreeze.settings.knob import inputs_of
from unfreeze.settings.use import PredictSettings
from unfreeze.text import as_text
from unfreeze.transfer.predictor import ImageInput, Prediction, load_classifier
from unfreeze.transfer.reading import Read

COLUMNS = ("path", "label", "probability")


@dataclass(frozen=True, repr=False)
class Written(Displayed):
    """The CSV file of predictions, and their number."""

    out: str
    images: int

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return written(self)


class Predictions(Displayed, list[Prediction]):
    """The predictions in the order of the images."""

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return predicted(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per image: `path, label, probability`."""
        return [dict(prediction) for prediction in self]


class _Input(NamedTuple):
    path: str
    read: Read


@python_call(PredictSettings)
@isolated()
def predict(
    run: str | PathLike[str],
    images: ImageInput | Iterable[ImageInput],
    *,
    progress: bool | None = None,
    **settings: Any,
) -> Predictions:
    """Predict the most likely class of each image.

    `images`: one image or an iterable of paths (files, folders, archives), Pillow images, arrays
    [H, W, 3] or encoded bytes; images in memory are named by their position. Unreadable files are
    left out; DataError if none can be read, UsageError for other types and without images.
    """
    inputs = image_list(images)
    paths = [os.fsdecode(image) for image in inputs if is_path(image)]
    config = layered(PredictSettings, {"run": str(run), "images": paths, **settings})
    named = iter(config.images)
    items = [next(named) if is_path(image) else image for image in inputs]
    return _predictions(config, python_console(progress), items)


@isolated()
def run_predict(settings: PredictSettings, console: Console) -> Predictions | Written:
    """The same from a settings object; with `--out` returns the path of the CSV file."""
    predictions = _predictions(settings, console, settings.images)
    return (
        Written(settings.out, len(predictions))
        if settings.out and not settings.json
        else predictions
    )


def _predictions(s: PredictSettings, console: Console, images: Sequence[Any]) -> Predictions:
    if not images:
        raise UsageError("predict needs images.", "Give files, folders or archives after RUN.")
    # check before the work, not after
    out = output_file(s.out, ours=table_of(COLUMNS), inputs=inputs_of(s)) if s.out else None
    network = placed(load_classifier(s.run), s.device, s.precision)
    intensity = network.preprocess.intensity
    inputs = [
        item
        for position, image in enumerate(images)
        for item in (
            _inputs(image, s.data_root, intensity, console)
            if isinstance(image, str)
            else [_Input(str(position), partial(pixels_of, image, intensity))]
        )
    ]
    names = [item.path for item in inputs]
    reads = (item.read for item in inputs)
    outputs = send(network, names, reads, batch_size=s.batch_size, console=console)
    if outputs.cropped is not None and outputs.cropped.warning is not None:
        console.warn(outputs.cropped.warning)
    predictions = network.label(
        [names[position] for position in outputs.kept.tolist()], outputs.values
    )
    if out:
        rows = (
            (prediction.path, prediction.label, f"{prediction.probability:.6f}")
            for prediction in predictions
        )
        write_csv(out, COLUMNS, rows)
    return Predictions(predictions)


def _inputs(
    name: str, data_root: str, intensity: str, console: Console | None = None
) -> Iterator[_Input]:
    path = Path(name)
    if path.is_file() and not is_collection(path.name):
        yield _Input(name, partial(_decode_file, path, intensity))
        return
    source = open_source(name, data_root=data_root)
    source.intensity = intensity
    for note in source.notes:
        (console or Quiet()).say(note)
    # paths in a list are relative to its folder; members of an archive are inside it
    prefix = as_text(f"{path.parent if isinstance(source, FileListSource) else name}/")
    for row in _rows(source):
        inner = source.names[row]
        yield _Input(("" if built_in(name) else prefix) + inner, read_row(source, row))


def _rows(source: Source) -> Iterable[int]:
    """Rows to predict: all rows of a list, otherwise those that are image files."""
    return range(len(source)) if source.listed else image_rows(source)


def _decode_file(path: Path, intensity: str) -> Pixels:
    return decode(path.read_bytes(), intensity)
