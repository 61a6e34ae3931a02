"""The model to export: a run's network with its card and preprocessing."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unfreeze.checkpoints.model_file import ModelCard, model_folder, read_card
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import UsageError
from unfreeze.models.adapt import adapt_tensor
from unfreeze.models.build import WIDE_NETWORKS, build
from unfreeze.models.head import remove_head, removed_activations, removed_heads, replace_head
from unfreeze.models.position_embeddings import native_size
from unfreeze.models.segmentation import is_segmentation_arch
from unfreeze.models.small import SMALL_NETWORKS
from unfreeze.models.stem import first_convolution
from unfreeze.models.text import is_text_arch
from unfreeze.tasks.registry import task_of_card
from unfreeze.transfer.predictor import (
    InferenceNetwork,
    load_classifier,
    load_features,
    load_task_model,
)


@dataclass(frozen=True)
class ExportedModel:
    """A network on the CPU in evaluation mode: images to scores [B, C], features [B, D] or maps.

    Maps [B, C, h, w] are the scores of each pixel of a segmentation network. `run`: name of the
    run's folder; `folder`: the model's folder; `missing`: dotted names of a backbone's removed
    head, () for a classifier. `with_preprocessing`: the exported program takes one image, uint8
    [H, W, 3] of any size, and gives probabilities [C] or features [D]. `thresholds`: of several
    labels for an image, the probability of each class from which on an image has it; None if it has
    one label.
    """

    run: str
    folder: Path
    network: nn.Module
    card: ModelCard
    preprocess: Preprocess
    missing: tuple[str, ...]
    with_preprocessing: bool = False
    thresholds: list[float] | None = None

    @property
    def library(self) -> str:
        """`torchvision`, `timm` or `unfreeze`."""
        return self.card.arch.partition("/")[0]

    @property
    def name(self) -> str:
        """The architecture's name in its library, without timm's pretrained tag."""
        return self.card.arch.partition("/")[2].partition(".")[0]

    @property
    def small_stem(self) -> bool:
        """Whether a library's first layers were replaced by the small stem."""
        return self.card.stem == "small" and not self.ours

    @property
    def ours(self) -> bool:
        """Whether the architecture is one of unfreeze, not of torchvision or timm."""
        return self.library == "unfreeze" and self.name in (*SMALL_NETWORKS, *WIDE_NETWORKS)

    @property
    def gives(self) -> str:
        """The output: `scores`, `probabilities`, `features` or `maps`."""
        if is_segmentation_arch(self.card.arch):
            return "maps"
        if self.missing:
            return "features"
        return "probabilities" if self.with_preprocessing else "scores"

    @property
    def texts(self) -> bool:
        """Whether its inputs are texts."""
        return is_text_arch(self.card.arch)

    @property
    def identities(self) -> tuple[str, ...]:
        """Dotted names of layers of the library's network that are Identity in this one."""
        return (*self.missing, *removed_activations(self.network))

    def example(self) -> Tensor:
        """A batch of two black images, to trace a program that takes any number."""
        return torch.zeros(2, 3, *self.preprocess.shape)

    @property
    def resized(self) -> bool:
        """Whether it is a vision transformer with another image size than its library's."""
        if self.gives == "maps" or self.texts:
            return False
        return native_size(self.network) not in (None, self.preprocess.image_size)

    def recorded(self) -> nn.Module:
        """The network to trace: a vision transformer with its image size fixed.

        Unchanged if the image size is not a multiple of its patch size.
        """
        if self.gives == "maps":
            return self.network
        size, first = self.preprocess.image_size, first_convolution(self.network)
        if native_size(self.network) is None or first is None:
            return self.network
        if size % self.network.get_parameter(first).shape[-1]:
            return self.network
        network = build(self.card.arch, stem=self.card.stem, image_size=size)
        if self.missing:
            remove_head(network)
        else:
            replace_head(network, self.card.outputs or len(self.card.classes), kind=self.card.head)
        entries = network.state_dict()
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                entries[name].copy_(adapt_tensor(network, name, tensor, entries[name]))
        return network.eval()

    def tensors(self) -> dict[str, Tensor]:
        """The state dict, without wrapper prefixes."""
        return dict(self.network.state_dict())


def load_exported_model(run: str | Path, *, with_preprocessing: bool = False) -> ExportedModel:
    """The model of a finished run or its `model/` folder; WeightsError for anything else.

    UsageError for a model that `with_preprocessing` does not support.
    """
    card = read_card(run)
    dense = is_segmentation_arch(card.arch)
    if with_preprocessing and (dense or is_text_arch(card.arch)):
        kind = "segmentation" if dense else "text"
        raise UsageError(
            f"--with-preprocessing is for images with one result each, and this is a {kind} model.",
            "Omit it: the README of the export shows how to preprocess.",
        )
    task = task_of_card(card.task, card.outputs, card.task_state)
    thresholds = None if task is None else task.decision_thresholds()
    if task is not None and not dense and thresholds is None:
        raise UsageError(
            f"Models of the task {card.task} cannot be exported.",
            "unfreeze.load(RUN) returns it as an nn.Module; the model/ folder alone is enough.",
        )
    model: InferenceNetwork
    if task is not None:
        model = load_task_model(run)
    elif card.kind == "classifier":
        model = load_classifier(run)
    else:
        model = load_features(run)
    return ExportedModel(
        run=Path(run).resolve().name,
        folder=model_folder(run) or Path(run),
        network=model.network.eval(),
        card=model.card,
        preprocess=model.preprocess,
        missing=() if dense else removed_heads(model.network),
        with_preprocessing=with_preprocessing,
        thresholds=thresholds,
    )
