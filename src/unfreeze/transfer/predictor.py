"""Trained classifiers and backbones for inference: images in, labels or features out."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from torch import Tensor, nn

from unfreeze.checkpoints.model_file import ModelCard, load_model, read_card
from unfreeze.data.images.decode import decode
from unfreeze.data.images.errors import Undecodable
from unfreeze.data.images.in_memory import as_image_list, is_path, pixels_of
from unfreeze.data.images.preprocess import Pixels, Preprocess
from unfreeze.data.texts.preprocess import TextPreprocess
from unfreeze.errors import DataError, UsageError, WeightsError
from unfreeze.evaluation.calibration import apply_temperature
from unfreeze.models.build import build
from unfreeze.models.head import remove_head
from unfreeze.models.load_weights import load_strict
from unfreeze.models.segmentation import EncoderFeatures, is_segmentation_arch
from unfreeze.runtime.device import autocast
from unfreeze.runtime.isolation import isolated
from unfreeze.tasks.registry import task_of_card
from unfreeze.tasks.segmentation.metrics import predicted_ids
from unfreeze.text import path_argument
from unfreeze.transfer.initialize import network_from_card, preprocess_of
from unfreeze.transfer.known_images import Decisions
from unfreeze.transfer.tiles import tiled_maps

THREADS = 4  # decoding and resizing release the GIL; more threads only use more memory
Read = Callable[[], npt.NDArray[Any]]  # pixels of an image, or tokens of a text
Failure = OSError | Undecodable


def read_in_order(
    reads: Iterable[Read],
    preprocess: Preprocess,
    *,
    batch_size: int,
    skip: Callable[[int, Failure], None] | None = None,
) -> Iterator[Tensor]:
    """Batches uint8 [B, S, S, 3] of `batch_size` images, in the order of `reads`.

    For an image that cannot be read, `skip(position, error)` is called and the image is left out;
    without `skip` its error is raised. With tiles, each image is a batch.
    """
    batch_size = 1 if preprocess.fit == "tile" else batch_size

    def load(read: Read) -> Pixels | Failure:
        try:
            return preprocess.pixels(read())
        except (OSError, Undecodable) as error:
            if skip is None:
                raise
            return error

    source, before = iter(reads), 0
    with ThreadPoolExecutor(THREADS) as pool:
        current = [pool.submit(load, read) for read in islice(source, batch_size)]
        while current:
            following = [pool.submit(load, read) for read in islice(source, batch_size)]
            batch = []
            for position, future in enumerate(current, before):
                result = future.result()
                if isinstance(result, np.ndarray):
                    batch.append(result)
                elif skip is not None:
                    skip(position, result)
            before += len(current)
            if batch:
                yield preprocess.collate(batch)
            current = following


ImageInput = str | PathLike[str] | bytes | npt.NDArray[Any] | Image


@dataclass(frozen=True, repr=False)
class Prediction:
    """One image's most likely label and its probability; read as `x.label` or `x["label"]`.

    `top`: the most likely labels with their probabilities, the first included; `probabilities`: of
    every class; `set`, `ood`: with `unknown`, the labels that hold the true one at that level, and
    the share of validation images that are less odd. None if they were not asked for. `label`: None
    where the model should not answer.
    """

    path: str
    label: str | None
    probability: float
    top: list[dict[str, Any]] | None = None
    probabilities: dict[str, float] | None = None
    set: list[str] | None = None
    ood: float | None = None

    def keys(self) -> tuple[str, ...]:
        """Names of the fields asked for: `dict(prediction)` is the output of `--json`."""
        names = (field.name for field in fields(self))
        return tuple(name for name in names if name == "label" or getattr(self, name) is not None)

    def __repr__(self) -> str:
        return f"Prediction({', '.join(f'{name}={self[name]!r}' for name in self.keys())})"

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)


class InferenceNetwork(nn.Module):
    """A network with its preprocessing, in evaluation mode; `forward` takes normalised images."""

    def __init__(self, network: nn.Module, card: ModelCard, preprocess: Preprocess) -> None:
        super().__init__()
        self.network, self.card, self.preprocess = network, card, preprocess
        self.precision = "fp32"
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] or features [B, D], float32, of normalised images [B, 3, S, S]."""
        with autocast(images.device, self.precision):
            outputs: Tensor = self.network(images)
        return outputs.float()

    def prepare(self, batch: Tensor) -> Tensor:
        """Input [B, 3, S, S] on the network's device of uint8 [B, S, S, 3]."""
        device = next(self.network.parameters()).device
        return self.preprocess.model_input(batch.to(device))

    def outputs(
        self,
        reads: Iterable[Read],
        *,
        batch_size: int = 64,
        skip: Callable[[int, Failure], None] | None = None,
    ) -> Iterator[Tensor]:
        """Outputs float32 [B, C] on the CPU, batch by batch, of the images from `reads`.

        For unreadable images `skip(position, error)` is called; without `skip` the error is raised.
        """
        self.eval()
        for batch in read_in_order(reads, self.preprocess, batch_size=batch_size, skip=skip):
            with torch.inference_mode():
                yield batch_outputs(
                    lambda pixels: self(self.prepare(pixels)), batch, self.preprocess
                ).cpu()


def batch_outputs(
    forward: Callable[[Tensor], Tensor], batch: Tensor, preprocess: Preprocess
) -> Tensor:
    """Outputs of a batch of `read_in_order`; `forward` maps uint8 [B, h, w, 3] to outputs."""
    if preprocess.fit == "tile":
        return tiled_maps(forward, batch[0].numpy(), preprocess.shape)
    return forward(batch)


class ParallelNetworks(nn.Module):
    """Concatenates the outputs of n networks: images [B, 3, S, S] to [B, n * C]."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Outputs of all networks, concatenated."""
        return torch.cat([network(images) for network in self.networks], dim=1)


class Classifier(InferenceNetwork):
    """A network with named classes; `head`: names of its head's parameters."""

    head: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.card.classes

    @isolated()
    def predict(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        batch_size: int = 64,
        top: int = 1,
        probabilities: bool = False,
    ) -> list[Prediction]:
        """The most likely class of each image: paths, Pillow images, arrays [H, W, 3] or bytes.

        `top`: number of classes in the predictions' `top`; `probabilities`: of every class, too.

        `images`: one image or an iterable. Images without a path are named by their position.
        Decoding and preprocessing are those of training. Raises UsageError for objects that are not
        images or an empty input, DataError for a file that cannot be read.

        A model of texts takes texts, or pairs of texts as tuples.
        """
        if isinstance(self.preprocess, TextPreprocess):
            given: Any = images
            texts = [given] if isinstance(given, str) else list(given)
            names, reads = self._read_texts(self.preprocess, texts)
            logits = torch.cat(list(self.outputs(reads, batch_size=batch_size)))
            return self.label(names, logits, top=top, probabilities=probabilities)
        inputs = as_image_list(images)
        names = [_name(index, image) for index, image in enumerate(inputs)]
        reads = [partial(_pixels, image, self.preprocess.intensity) for image in inputs]
        logits = torch.cat(list(self.outputs(reads, batch_size=batch_size)))
        return self.label(names, logits, top=top, probabilities=probabilities)

    def _read_texts(
        self, preprocess: TextPreprocess, texts: Sequence[Any]
    ) -> tuple[list[str], list[Read]]:
        reads = list[Read]()
        for number, text in enumerate(texts):
            parts = (text,) if isinstance(text, str) else text
            if not isinstance(parts, tuple) or not all(isinstance(part, str) for part in parts):
                raise UsageError(
                    f"Input {number} is a {type(text).__name__}.", "Give texts, or pairs of texts."
                )
            reads.append(partial(preprocess.encode, *parts))
        if not reads:
            raise UsageError("No texts to predict.", "Give texts, or pairs of texts.")
        return [str(number) for number in range(len(reads))], reads

    @isolated()
    def label(
        self,
        names: Sequence[str],
        logits: Tensor,
        *,
        top: int = 1,
        probabilities: bool = False,
        decisions: Decisions | None = None,
    ) -> list[Prediction]:
        """Predictions of logits [N, C]; `top`, `probabilities`: as in `predict`.

        `decisions`: which images to answer, with their sets of labels.
        """
        shares = apply_temperature(logits, self.card.temperature).softmax(dim=1)
        # equal probabilities: the first class, as argmax
        order = (
            shares.argmax(dim=1, keepdim=True)
            if top <= 1
            else shares.argsort(dim=1, descending=True, stable=True)[:, :top]
        )
        best = zip(order.tolist(), shares.gather(1, order).tolist(), strict=True)
        predictions = []
        for position, (name, (indices, values)) in enumerate(zip(names, best, strict=True)):
            ranked = [
                {"label": self.classes[index], "probability": value}
                for index, value in zip(indices, values, strict=True)
            ]
            every = None
            if probabilities:
                every = dict(zip(self.classes, shares[position].tolist(), strict=True))
            prediction = Prediction(
                name, **ranked[0], top=ranked if top > 1 else None, probabilities=every
            )
            if decisions is not None:
                prediction = _decided(prediction, decisions, position, self.classes)
            predictions.append(prediction)
        return predictions


def _decided(
    prediction: Prediction, decisions: Decisions, position: int, classes: Sequence[str]
) -> Prediction:
    """The prediction with its set, most likely label first, and no label if not answered."""
    likely = np.argsort(-decisions.probabilities[position], kind="stable").tolist()
    return replace(
        prediction,
        label=prediction.label if decisions.answered[position] else None,
        set=[classes[index] for index in likely if decisions.sets[position, index]],
        ood=float(decisions.ood[position]),
    )


@isolated()
def load_classifier(run: str | Path) -> Classifier:
    """The classifier of a finished run or its `model/` folder; WeightsError for a backbone."""
    tensors, card = load_model(run)
    if card.kind == "predictor":
        raise WeightsError(f"{run} is a model of the task {card.task}, not a classifier.", "")
    if card.kind != "classifier" or not card.classes:
        raise WeightsError(
            f"{run} is a backbone without classes.", "Fine-tune it first: use it as --weights."
        )
    network, head = network_from_card(card)
    load_strict(network, tensors)
    classifier = Classifier(network, card, preprocess_of(card, run))
    classifier.head = tuple(head)
    return classifier


class TaskModel(InferenceNetwork):
    """A network of a task other than classification, with its preprocessing."""

    def __init__(self, network: nn.Module, card: ModelCard, preprocess: Preprocess) -> None:
        super().__init__(network, card, preprocess)
        task = task_of_card(card.task, card.outputs, card.task_state)
        if task is None:
            raise WeightsError("This is a classifier.", "Use load_classifier().")
        self.task = task

    @isolated()
    def predict(
        self, images: ImageInput | Iterable[ImageInput], *, batch_size: int = 64
    ) -> list[dict[str, Any]]:
        """`path` and the task's prediction for each image; inputs as in `Classifier.predict`.

        Segmentation: `ids`, the class of each pixel as uint8 [H, W], for `classes`.
        """
        inputs = as_image_list(images)
        reads = [partial(_pixels, image, self.preprocess.intensity) for image in inputs]
        names = [_name(index, image) for index, image in enumerate(inputs)]
        if self.task.dense:
            return list(self._maps(names, reads))
        return self.label(names, torch.cat(list(self.outputs(reads, batch_size=batch_size))))

    def _maps(self, names: Sequence[str], reads: Sequence[Read]) -> Iterator[dict[str, Any]]:
        for name, read in zip(names, reads, strict=True):
            image = read()
            (logits,) = self.outputs([partial(_same, image)], batch_size=1)
            size = (image.shape[0], image.shape[1])
            yield {"path": name, "ids": predicted_ids(logits[0], size)}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of segmentation; () for other tasks."""
        return self.card.classes

    @isolated()
    def label(self, names: Sequence[str], outputs: Tensor) -> list[dict[str, Any]]:
        """Predictions of outputs [N, K]."""
        predicted = zip(names, self.task.predict(outputs), strict=True)
        return [{"path": name, **values} for name, values in predicted]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the values of a prediction."""
        return ("path", *self.task.cells(self.task.predict(self.task.example_outputs())[0]))

    def cells(self, prediction: dict[str, Any]) -> dict[str, Any]:
        """A prediction as the values of `columns`."""
        values = {name: value for name, value in prediction.items() if name != "path"}
        return {"path": prediction["path"], **self.task.cells(values)}


@isolated()
def load_task_model(run: str | Path) -> TaskModel:
    """The model of a finished run of a task other than classification, or its `model/` folder."""
    tensors, card = load_model(run)
    network, _ = network_from_card(card)
    load_strict(network, tensors)
    return TaskModel(network, card, Preprocess.from_dict(card.preprocess))


@isolated()
def load_fine_tuned(run: str | Path) -> Classifier | TaskModel:
    """The model of a fine-tuning run or its `model/` folder; WeightsError for a backbone."""
    return load_task_model(run) if read_card(run).kind == "predictor" else load_classifier(run)


@isolated()
def load_features(run: str | Path) -> InferenceNetwork:
    """The network of a run without its head: `forward` gives features [B, D]."""
    tensors, card = load_model(run)
    preprocess = preprocess_of(card, run)
    if is_segmentation_arch(card.arch):
        network, _ = network_from_card(card)
        load_strict(network, tensors)
        network = EncoderFeatures(network)
        preprocess = replace(preprocess, fit="squash")  # features of whole images
    elif card.kind != "backbone":
        network, _ = network_from_card(card)
        load_strict(network, tensors)
        remove_head(network)
    else:
        network = build(card.arch, stem=card.stem)
        remove_head(network)
        load_strict(network, tensors)
    return InferenceNetwork(network, card, preprocess)


def _same(image: Pixels) -> Pixels:
    return image


def _name(index: int, image: Any) -> str:
    return os.fsdecode(image) if is_path(image) else str(index)


def _pixels(image: Any, intensity: str) -> Pixels:
    if not is_path(image):
        return pixels_of(image, intensity)
    path = Path(path_argument(os.fsdecode(image)))
    try:
        return decode(path.read_bytes(), intensity)
    except DataError as error:
        raise DataError(f"{path}: {error.sentence}", error.next_step) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"Cannot read {path}: {reason}.") from error
