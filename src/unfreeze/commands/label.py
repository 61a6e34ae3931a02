"""`label`: a page on this machine to label images by key."""

import os
import sys
import threading
import webbrowser
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from unfreeze.config.field import inputs_of
from unfreeze.config.labelling import LabelSettings
from unfreeze.config.layering import load_settings
from unfreeze.config.shared import Data, data_name
from unfreeze.data.index.index import Index, build_index
from unfreeze.data.index.mask_pairs import has_masks
from unfreeze.data.sources.open import open_source
from unfreeze.data.sources.source import Source
from unfreeze.errors import DataError, UsageError
from unfreeze.reports.results_data import label_display
from unfreeze.runs.labelling.label_server import LabelServer, LabelSession
from unfreeze.runs.labelling.label_table import COLUMNS, LabelTable, checked_class_name
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.console import Console, pluralised
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.output_files import check_output_file, is_csv_with
from unfreeze.runtime.signals import stop_requests

if TYPE_CHECKING:
    from unfreeze.transfer.predictor import InferenceNetwork

_POLL = 0.2  # seconds between looks at whether the page or a signal ended it


@dataclass(frozen=True, repr=False)
class LabelResult(Displayed):
    """What is in the table `out` now.

    `images`: in DATA, of which `labelled` have a label, `given` of them from this session, and
    `unreadable` cannot be read (of those that were shown). `classes`: labelled images of each.
    """

    out: str
    data: str
    run: str | None
    images: int
    labelled: int
    given: int
    unreadable: int
    classes: dict[str, int]

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return label_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per class: `class`, `images`."""
        return [{"class": name, "images": count} for name, count in self.classes.items()]


@python_call(LabelSettings)
def label(
    data: Data, out: str | PathLike[str], *, progress: bool | None = None, **settings: Any
) -> LabelResult:
    """Serve a page on 127.0.0.1 to label the images of `data`, until it is finished or interrupted.

    Every label is in the CSV file `out` (path, label, split) before the next image is shown.
    UsageError if `out` has other columns; DataError if all images have a label.
    """
    values = {"data": data, "out": str(out), **settings}
    console = python_console(progress is not False)  # also in a script: it prints the address
    return run_label(load_settings(LabelSettings, values), console)


@isolated()
def run_label(settings: LabelSettings, console: Console) -> LabelResult:
    """The same from a settings object."""
    s = settings
    if not s.out:
        raise UsageError("label needs an output file.", "Add --out LABELS.csv.")
    out = check_output_file(s.out, ours=is_csv_with(COLUMNS), inputs=inputs_of(s))
    names = _class_names(s)
    source = open_source(s.data, data_root=s.data_root, console=console)
    if has_masks(source):
        raise UsageError(
            f"{source.where} holds masks, and label is for labels in a table.",
            "Give the folder of the images alone.",
        )
    if s.clusters and not s.run:
        raise UsageError("--clusters needs a model.", "Add --run RUN, a run or weights of images.")
    model = _network(s, source, console) if s.run else None
    if model is not None:
        names += [name for name in model[1] if name not in names]
    index = _index(s, source, console)
    table = LabelTable(out, index, names)
    if not table.listed and table.labelled().all():
        raise DataError(
            f"All {len(index):,} images of {source.where} have a label, by their folders or list.",
            "Add --ignore-labels if these are not the classes.",
        )
    if table.unmatched:
        lines = pluralised(table.unmatched, "line", "lines")
        console.say(f"{lines} of {s.out} match no image and stay as they are.")
    rest = np.setdiff1d(np.arange(len(index)), table.listed).tolist()
    hints, groups = dict[int, tuple[str, float]](), list[list[int]]()
    if model is not None:
        from unfreeze.runs.labelling.model import opinion  # torch takes seconds

        todo = np.flatnonzero(~table.labelled())
        said = opinion(*model, index, todo, s, console)
        hints, groups = said.hints, said.groups
        rest.sort(key=lambda image: -said.uncertainty.get(image, -1.0))
    session = LabelSession(index, table, [*table.listed, *rest], hints, groups, s.none_class)
    try:
        _serve(session, s, console)
    finally:
        table.close()  # connections that are still open write nothing more
    for line in session.unreadable_lines():
        console.warn(line)
    return LabelResult(
        out=s.out,
        data=data_name(s.data),
        run=s.run,
        images=len(index),
        labelled=int(table.labelled().sum()),
        given=session.given,
        unreadable=session.unreadable,
        classes=table.counts(),
    )


def _class_names(s: LabelSettings) -> list[str]:
    """The names of --classes and --none-class; UsageError if one cannot be a class."""
    names = list[str]()
    given = [part.strip() for text in s.classes for part in text.split(",")]
    for name in [*given, *([] if s.none_class is None else [s.none_class])]:
        if name not in names:
            names.append(checked_class_name(name, names))
    return names


def _network(
    s: LabelSettings, source: Source, console: Console
) -> tuple["InferenceNetwork", list[str]]:
    """The network of --run and its classes; the source decodes images as it needs them."""
    from unfreeze.runs.labelling.model import network_with_features

    network, count = network_with_features(str(s.run), s.arch, "label", console)
    if not count and not s.clusters:
        raise UsageError(
            f"{s.run} has no classes to predict.", "Give a fine-tuned run, or add --clusters N."
        )
    network.preprocess.attach(source)
    return network, list(network.card.classes[:count])


def _index(s: LabelSettings, source: Source, console: Console) -> Index:
    """The images of the source, without its labels if these are to be ignored."""
    index = build_index(source, strange_classes=True, whole=True)
    for note in index.notes:
        console.say(note)
    if s.ignore_labels:
        return replace(index, labels=np.full(len(index), -1, np.int32), classes=())
    return index


def _serve(session: LabelSession, s: LabelSettings, console: Console) -> None:
    """Serve the page until it is finished or a signal comes; requests in progress are completed."""
    with LabelServer(session, s.port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(_POLL,), daemon=True)
        thread.start()
        try:
            console.say("Label on this page; Ctrl-C ends it. Every label is saved at once.")
            console.say(server.url)
            if not s.no_browser and _has_display():
                webbrowser.open(server.url)
            with stop_requests() as stop:
                while not stop and not server.finished.wait(_POLL):
                    pass
        finally:
            server.finished.set()
            server.shutdown()
            thread.join()


def _has_display() -> bool:
    """Whether a browser can open a window; one in the terminal would cover the address."""
    windows = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return windows or sys.platform in ("darwin", "win32")
