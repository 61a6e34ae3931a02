"""`embed`: writes the features of images to a .npz file."""

from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.api.keywords import python_call
from unfreeze.api.serving import placed, reads_of, send
from unfreeze.backbones.build import build as build_network
from unfreeze.backbones.build import canonical
from unfreeze.backbones.head import headless
from unfreeze.backbones.recognise import network_of
from unfreeze.backbones.weights import load_weights
from unfreeze.checkpoints.modelfile import ModelCard, model_folder
from unfreeze.data.index import Index, build_index
from unfreeze.data.layout import SPLIT_NAMES
from unfreeze.data.preprocess import Preprocess
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError, UsageError
from unfreeze.reports.results_models import embedded
from unfreeze.runtime.atomic import replacing
from unfreeze.runtime.console import Console
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.outputs import arrays_of, output_file
from unfreeze.settings.build import layered
from unfreeze.settings.knob import inputs_of
from unfreeze.settings.shared import Data, said_of
from unfreeze.settings.use import EmbedSettings
from unfreeze.transfer.predictor import Network, load_features

ARRAYS = ("features", "paths", "labels", "classes")
PLAIN = Preprocess(224, 256)  # for weights without preprocessing of their own


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
        return embedded(self)

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
    return run_embed(layered(EmbedSettings, values), python_console(progress))


@isolated()
def run_embed(settings: EmbedSettings, console: Console) -> EmbedResult:
    """The same from a settings object."""
    s = settings
    if not s.out:
        raise UsageError("embed needs an output file.", "Add --out FEATURES.npz.")
    # check before the work, not after
    out = output_file(s.out, ours=arrays_of(*ARRAYS), inputs=inputs_of(s))
    network = placed(_network(s, console), s.device, s.precision)
    source = open_source(s.data, data_root=s.data_root, console=console)
    source.intensity = network.preprocess.intensity
    index = build_index(
        source,
        strange_classes=True,
        **said_of(s),
    )
    index = index.take(in_split(index, s.split))
    outputs = send(network, index.paths, reads_of(index), batch_size=s.batch_size, console=console)
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


def in_split(index: Index, split: str | None) -> npt.NDArray[np.int64]:
    """Positions of the images of a split; all for None and "all"; DataError if it is empty."""
    if split in (None, "all"):
        return np.arange(len(index))
    positions = index.where(SPLIT_NAMES.index(str(split)))
    if not len(positions):
        names = [name for number, name in enumerate(SPLIT_NAMES) if len(index.where(number))]
        raise DataError(
            f"{index.source.where} has no split {split!r}.",
            f"Splits: {', '.join(filter(None, names)) or 'none'}; --split all uses all images.",
        )
    return positions


def _network(s: EmbedSettings, console: Console) -> Network:
    if model_folder(s.weights) is not None:
        return load_features(s.weights)
    known = network_of(s.weights, s.arch)
    if s.arch is None and known is None:
        raise UsageError(
            f"{s.weights} does not name its architecture.",
            "Add --arch NAME; `unfreeze inspect` may recognise it.",
        )
    arch, stem = (
        canonical(s.arch or (known.arch if known else "")),
        known.stem if known else "imagenet",
    )
    network = build_network(arch, stem=stem)
    loaded = load_weights(network, s.weights, arch=arch)
    console.say(loaded.account)
    if loaded.licence:
        console.say(loaded.licence)
    headless(network)
    preprocess = loaded.preprocess or PLAIN
    card = ModelCard("backbone", arch, stem, preprocess=preprocess.as_dict())
    return Network(network, card, preprocess)
