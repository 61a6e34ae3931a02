"""The inputs on which an export is compared with the run's model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unfreeze.config.commands import ExportSettings
from unfreeze.config.layering import is_run_config, read_run_config
from unfreeze.config.shared import data_name
from unfreeze.data.images.preprocess import Pixels, Preprocess
from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import builtin_name, open_source
from unfreeze.data.texts.preprocess import TextPreprocess
from unfreeze.errors import DataError
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.models.text import TextClassifier
from unfreeze.runs.finetuning.task_settings import open_samples
from unfreeze.runs.inference import readers_of
from unfreeze.tasks.segmentation.crops import mirrored

COUNT = 16  # number of images to compare outputs on
# (height, width) of copies of them, for programs that take any size: tiny, long, odd, large
SIZES = ((1, 1), (2, 3), (9, 7), (31, 33), (33, 99), (99, 33), (101, 401), (401, 101))
LARGE_SIZES = ((224, 224), (255, 257), (300, 1201), (1201, 300), (1201, 1603))


def inputs_to_compare(
    s: ExportSettings, subject: ExportedModel
) -> tuple[Tensor | list[Pixels], str]:
    """(inputs, their description): a batch, or images uint8 [H, W, 3] with preprocessing.

    DataError if `--data` holds no images.
    """
    if isinstance(subject.preprocess, TextPreprocess):
        return _texts(s, subject, subject.preprocess)
    images, description = _images(s, subject)
    if not subject.with_preprocessing:
        return _batch(images, subject.preprocess), description
    copies = [
        np.asarray(Image.fromarray(images[number % len(images)]).resize((width, height)))
        for number, (height, width) in enumerate((*SIZES, *LARGE_SIZES))
    ]
    sizes = "1x1 to {}x{}".format(*LARGE_SIZES[-1])
    return [*images, *copies], f"{description} and {len(copies)} copies of {sizes} pixels"


def _images(s: ExportSettings, subject: ExportedModel) -> tuple[list[Pixels], str]:
    """(images, their description): from `--data`, else of the run, else random noise."""
    preprocess = subject.preprocess
    data = s.data or (data_of_run(s.run) if subject.with_preprocessing else None)
    if data:
        source = open_source(data, data_root=s.data_root)
        source.intensity = preprocess.intensity
        index = build_index(source, strange_classes=True)
        if not len(index):
            raise DataError(f"No images in {data_name(data)}.", "Give other images with --data.")
        images = [read() for read in readers_of(index.take(_spread(len(index))))]
        return images, f"{len(images)} images of {_name(data)}"
    views = Path(s.run) / "views.npz"
    if views.is_file():
        with np.load(views, allow_pickle=False) as arrays:
            flat = arrays["views"].reshape(-1, *arrays["views"].shape[-3:])
        chosen = flat[_spread(len(flat))]
        return list(chosen), f"{len(chosen)} views of the run's training images"
    rng, side = np.random.default_rng(0), preprocess.image_size
    noise = rng.integers(0, 256, (COUNT, side, side, 3), np.uint8)
    return list(noise), f"{COUNT} images of random noise (use --data for real ones)"


def data_of_run(run: str) -> tuple[str, ...] | None:
    """DATA of a run folder; None for a model alone, or if the files are no longer there."""
    config = Path(run) / "config.toml"
    if not is_run_config(config):
        return None
    data = read_run_config(config).get("data")
    names = (data,) if isinstance(data, str) else tuple(data or ())
    there = all(Path(name).exists() or builtin_name(name) is not None for name in names)
    return names if names and there else None


def _name(data: str | tuple[str, ...]) -> str:
    names = (data,) if isinstance(data, str) else data
    return ", ".join(Path(name).name for name in names)


def _spread(count: int) -> np.ndarray:
    """Up to COUNT positions, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, COUNT).astype(np.int64))


def _texts(
    s: ExportSettings, subject: ExportedModel, preprocess: TextPreprocess
) -> tuple[Tensor, str]:
    """(tokens [B, L, 2], their description): of `--data`, else random tokens."""
    if s.data:
        source = open_samples(s.data, subject.card, data_root=s.data_root)
        preprocess.attach(source)
        rows = _spread(len(source))
        tokens = preprocess.collate([source.sample(row) for row in rows.tolist()])
        return tokens, f"{len(rows)} texts of {Path(s.data).name}"
    if not isinstance(subject.network, TextClassifier):
        raise TypeError(f"{subject.card.arch} is no text network")
    tokens = subject.network.example_input(COUNT, torch.device("cpu"))
    return tokens, f"{COUNT} texts of random tokens (use --data for real ones)"


def _batch(images: Sequence[Pixels], preprocess: Preprocess) -> Tensor:
    if preprocess.fit == "tile":  # the first tile of each image
        height, width = preprocess.shape
        images = [mirrored(image, preprocess.shape)[:height, :width] for image in images]
    return torch.stack([preprocess.apply(image) for image in images])
