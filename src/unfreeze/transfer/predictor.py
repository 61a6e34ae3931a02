"""A trained classifier as one module: images in, labels and probabilities out."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from PIL.Image import Image
from torch import Tensor, nn

from unfreeze.backbones.build import build
from unfreeze.backbones.head import headless
from unfreeze.backbones.weights import load_exactly
from unfreeze.checkpoints.modelfile import ModelCard, load_model
from unfreeze.data.decode import decode
from unfreeze.data.given import image_list, is_path, pixels_of
from unfreeze.data.preprocess import Pixels, Preprocess
from unfreeze.data.views import normalise
from unfreeze.errors import DataError, WeightsError
from unfreeze.runtime.devices import autocast
from unfreeze.runtime.isolation import isolated
from unfreeze.text import given_path
from unfreeze.transfer.calibration import calibrated
from unfreeze.transfer.reading import Failure, Read, in_order
from unfreeze.transfer.start import from_card

ImageInput = str | PathLike[str] | bytes | npt.NDArray[Any] | Image


@dataclass(frozen=True)
class Prediction:
    """One image's most likely label and its probability; read as `x.label` or `x["label"]`."""

    path: str
    label: str
    probability: float

    def keys(self) -> tuple[str, ...]:
        """The names, so that `dict(prediction)` is what `--json` shows."""
        return tuple(field.name for field in fields(self))

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)


class Network(nn.Module):
    """A network with its preprocessing, in evaluation mode; `forward` takes normalised images."""

    def __init__(self, network: nn.Module, card: ModelCard, preprocess: Preprocess) -> None:
        super().__init__()
        self.network, self.card, self.preprocess = network, card, preprocess
        self.precision = "fp32"
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, C], or features [B, D], of normalised images [B, 3, S, S]."""
        with autocast(images.device, self.precision):
            out: Tensor = self.network(images)
        return out.float()

    def prepare(self, batch: Tensor) -> Tensor:
        """Input [B, 3, S, S] on the network's device of uint8 [B, S, S, 3]."""
        device = next(self.network.parameters()).device
        return normalise(batch.to(device), self.preprocess.mean, self.preprocess.std)

    def outputs(
        self,
        reads: Iterable[Read],
        *,
        batch_size: int = 64,
        skip: Callable[[int, Failure], None] | None = None,
    ) -> Iterator[Tensor]:
        """float32 [B, C] on the CPU, batch by batch, of the images that `reads` give.

        What cannot be read is told to `skip` with its place; without `skip` it raises.
        """
        self.eval()
        for batch in in_order(reads, self.preprocess, batch_size=batch_size, skip=skip):
            with torch.inference_mode():
                yield self(self.prepare(batch)).cpu()


class Beside(nn.Module):
    """Several networks on the same images: [B, 3, S, S] to [B, n * C], one after the other."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """All their scores."""
        return torch.cat([network(images) for network in self.networks], dim=1)


class Classifier(Network):
    """A network that knows its classes; `head`: names of its head's parameters."""

    head: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the scores."""
        return self.card.classes

    @isolated()
    def predict(
        self, images: ImageInput | Iterable[ImageInput], *, batch_size: int = 64
    ) -> list[Prediction]:
        """The most likely class of each image: paths, Pillow images, arrays [H, W, 3] or bytes.

        One image, or anything to go through. What is no file is named by its position. The same
        decoding and preprocessing as in training. UsageError for what is no image, and where there
        is none; DataError names a file that cannot be read.
        """
        given = image_list(images)
        names = [_name(place, image) for place, image in enumerate(given)]
        reads = [partial(_pixels, image, self.preprocess.intensity) for image in given]
        return self.label(names, torch.cat(list(self.outputs(reads, batch_size=batch_size))))

    @isolated()
    def label(self, names: Sequence[str], logits: Tensor) -> list[Prediction]:
        """Predictions of logits [N, C]."""
        best = calibrated(logits, self.card.temperature).softmax(dim=1).max(dim=1)
        found = zip(names, best.indices.tolist(), best.values.tolist(), strict=True)
        return [Prediction(name, self.classes[place], chance) for name, place, chance in found]


@isolated()
def load_classifier(run: str | Path) -> Classifier:
    """The classifier of a finished run, or of its `model/` folder; WeightsError for others."""
    tensors, card = load_model(run)
    if card.kind != "classifier" or not card.classes:
        raise WeightsError(
            f"{run} is a backbone without classes.", "Fine-tune it first: --weights takes it."
        )
    network, head = from_card(card)
    load_exactly(network, tensors)
    made = Classifier(network, card, Preprocess.from_dict(card.preprocess))
    made.head = tuple(head)
    return made


@isolated()
def load_features(run: str | Path) -> Network:
    """The network of a run without its head: `forward` gives features [B, D]."""
    tensors, card = load_model(run)
    if card.kind == "classifier":
        network, _ = from_card(card)
        load_exactly(network, tensors)
        headless(network)
    else:
        network = build(card.arch, stem=card.stem)
        headless(network)
        load_exactly(network, tensors)
    return Network(network, card, Preprocess.from_dict(card.preprocess))


def _name(place: int, image: Any) -> str:
    return os.fsdecode(image) if is_path(image) else str(place)


def _pixels(image: Any, intensity: str) -> Pixels:
    if not is_path(image):
        return pixels_of(image, intensity)
    path = Path(given_path(os.fsdecode(image)))
    try:
        return decode(path.read_bytes(), intensity)
    except DataError as error:
        raise DataError(f"{path}: {error.sentence}", error.next_step) from error
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {said}.") from error
