"""`embed`: writes the features of images to a .npz file."""

from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from unfreeze.config.commands import EmbedSettings
from unfreeze.config.field import inputs_of
from unfreeze.config.layering import load_settings
from unfreeze.config.shared import Data, label_arguments
from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import open_source
from unfreeze.errors import UsageError
from unfreeze.models.text import is_text_arch
from unfreeze.reports.results_models import embed_display
from unfreeze.runs.eval_split import positions_of_split
from unfreeze.runs.finetuning.task_settings import open_samples
from unfreeze.runs.inference import feature_network, on_device, readers_of, run_inference
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.atomic import replacing
from unfreeze.runtime.console import Console
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.output_files import check_output_file, is_npz_with

ARRAYS = ("features", "paths", "labels", "classes")


@dataclass(frozen=True, repr=False)
class EmbedResult(Displayed):
    """The written file; its `features` are [images, width]."""

    out: str
    arch: str
    images: int
    width: int
    classes: list[str]

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return embed_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per image: path, label, and features `f0`, `f1`, ..."""
        with np.load(self.out, allow_pickle=False) as arrays:
            names = [*arrays["classes"].tolist(), None]  # label -1 indexes None: no label
            return [
                {"path": p, "label": names[label]} | {f"f{i}": float(x) for i, x in enumerate(row)}
                for p, label, row in zip(
                    arrays["paths"].tolist(), arrays["labels"], arrays["features"], strict=True
                )
            ]


@python_call(EmbedSettings)
def embed(
    weights: str | PathLike[str],
    data: Data,
    out: str | PathLike[str],
    *,
    progress: bool | None = None,
    **settings: Any,
) -> EmbedResult:
    """Write the features of the images of `data` to the .npz file `out`.

    Arrays: `features` float32 [N, D] (the input of the network's head), `paths`, `labels` (indices
    of `classes`, -1 without a label) and `classes`.
    """
    values = {"weights": str(weights), "data": data, "out": str(out), **settings}
    return run_embed(load_settings(EmbedSettings, values), python_console(progress))


@isolated()
def run_embed(settings: EmbedSettings, console: Console) -> EmbedResult:
    """The same from a settings object."""
    s = settings
    if not s.out:
        raise UsageError("embed needs an output file.", "Add --out FEATURES.npz.")
    # check before the work, not after
    out = check_output_file(s.out, ours=is_npz_with(*ARRAYS), inputs=inputs_of(s))
    network = feature_network(s.weights, s.arch, console)
    network = on_device(network, s.device, s.precision)
    if is_text_arch(network.card.arch):
        source = open_samples(s.data, network.card, data_root=s.data_root)
    else:
        source = open_source(s.data, data_root=s.data_root, console=console)
    network.preprocess.attach(source)
    index = build_index(
        source,
        strange_classes=True,
        **label_arguments(s),
    )
    index = index.take(positions_of_split(index, s.split))
    outputs = run_inference(
        network, index.paths, readers_of(index), batch_size=s.batch_size, console=console
    )
    readable = index.take(outputs.kept)
    features = outputs.values.numpy().astype(np.float32)
    with replacing(out) as path, path.open("wb") as stream:
        np.savez(
            stream,
            features=features,
            paths=np.array(readable.paths, np.str_),
            labels=readable.labels,
            classes=np.array(readable.classes, np.str_),
        )
    return EmbedResult(
        s.out, network.card.arch, len(readable), features.shape[1], list(readable.classes)
    )
