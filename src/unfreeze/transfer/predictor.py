"""A trained classifier as one module: pictures in, labels and probabilities out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unfreeze.backbones.build import build
from unfreeze.backbones.head import headless
from unfreeze.backbones.weights import load_exactly
from unfreeze.checkpoints.modelfile import ModelCard, load_model
from unfreeze.data.decode import decode
from unfreeze.data.preprocess import Pixels, Preprocess
from unfreeze.data.views import normalise
from unfreeze.errors import DataError, WeightsError
from unfreeze.runtime.devices import autocast
from unfreeze.runtime.isolation import isolated
from unfreeze.transfer.calibration import calibrated
from unfreeze.transfer.reading import Failure, Read, in_order
from unfreeze.transfer.start import from_card

Picture = str | PathLike[str] | Pixels


@dataclass(frozen=True)
class Prediction:
    """One picture's most likely label and its probability; read as `x.label` or `x["label"]`."""

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
    """A network with its preprocessing, in evaluation mode; `forward` takes normalised pictures."""

    def __init__(self, network: nn.Module, card: ModelCard, preprocess: Preprocess) -> None:
        super().__init__()
        self.network, self.card, self.preprocess = network, card, preprocess
        self.precision = "fp32"
        self.eval()

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores [B, C], or features [B, D], of normalised pictures [B, 3, S, S]."""
        with autocast(pictures.device, self.precision):
            out: Tensor = self.network(pictures)
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
        """float32 [B, C] on the CPU, batch by batch, of the pictures that `reads` give.

        What cannot be read is told to `skip` with its place; without `skip` it raises.
        """
        self.eval()
        for batch in in_order(reads, self.preprocess, batch_size=batch_size, skip=skip):
            with torch.inference_mode():
                yield self(self.prepare(batch)).cpu()


class Beside(nn.Module):
    """Several networks on the same pictures: [B, 3, S, S] to [B, n * C], one after the other."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, pictures: Tensor) -> Tensor:
        """All their scores."""
        return torch.cat([network(pictures) for network in self.networks], dim=1)


class Classifier(Network):
    """A network that knows its classes; `head`: names of its head's parameters."""

    head: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the scores."""
        return self.card.classes

    @isolated()
    def predict(
        self, pictures: str | PathLike[str] | Sequence[Picture], *, batch_size: int = 64
    ) -> list[Prediction]:
        """The most likely class of each: files, or uint8 [H, W, 3] arrays (named by position).

        The same decoding and preprocessing as in training. DataError names a file that is none.
        """
        pictures = [pictures] if isinstance(pictures, str | PathLike) else pictures
        names = [_name(place, picture) for place, picture in enumerate(pictures)]
        reads = [partial(_pixels, picture, self.preprocess.intensity) for picture in pictures]
        batches = list(self.outputs(reads, batch_size=batch_size))
        return self.label(names, torch.cat(batches)) if batches else []

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


def _name(place: int, picture: Picture) -> str:
    return str(place) if isinstance(picture, np.ndarray) else str(picture)


def _pixels(picture: Picture, intensity: str) -> Pixels:
    if isinstance(picture, np.ndarray):
        return picture
    try:
        return decode(Path(picture).read_bytes(), intensity)
    except DataError as error:
        raise DataError(f"{picture}: {error.sentence}", error.next_step) from error
    except OSError as error:
        raise DataError(f"{picture} cannot be read: {error.strerror}.") from error
