"""safetensors export with the model card; supports every network."""

from pathlib import Path
from typing import cast

from torch import nn

from unfreeze.checkpoints.model_file import TENSORS, TRAINED_IMAGES, load_model, save_model
from unfreeze.data.texts.preprocess import TextPreprocess
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.format import LoadedExport
from unfreeze.exports.to_torchvision import network_lines
from unfreeze.exports.write import torch_lines
from unfreeze.models.position_embeddings import ANY_SIZE
from unfreeze.runtime.atomic import write_bytes
from unfreeze.transfer.predictor import load_classifier, load_features, load_task_model


class Safetensors:
    """`model.safetensors` and `model.json`, the format of unfreeze's `model/` folder."""

    def check(self, subject: ExportedModel) -> None:
        """Every network is supported."""

    def write(self, subject: ExportedModel, folder: Path) -> None:
        """Write both files, and the hashes of the training images if the run has them."""
        if isinstance(subject.preprocess, TextPreprocess):
            subject.preprocess.save(folder)
        save_model(folder, subject.tensors(), subject.card)
        hashes = subject.folder / TRAINED_IMAGES
        if hashes.is_file():
            write_bytes(folder / TRAINED_IMAGES, hashes.read_bytes())

    def read(self, subject: ExportedModel, folder: Path) -> LoadedExport:
        """Build the network of the card and load the tensors."""
        tensors, card = load_model(folder)
        if card.kind == "predictor":
            return LoadedExport(load_task_model(folder), tensors)
        load = load_classifier if card.kind == "classifier" else load_features
        return LoadedExport(load(folder), tensors)

    def snippet(self, subject: ExportedModel) -> list[str]:
        """Lines with torchvision or timm if they have the network, else with unfreeze."""
        if subject.texts:
            return ["import unfreeze", 'print(unfreeze.load(".").predict(["a text"]))']
        plain = subject.card.head in ("replace", "none")
        if subject.library == "torchvision" and plain and not subject.resized:
            lines = ["import torch, torchvision", *network_lines(subject), *_stem_lines(subject)]
        elif subject.library == "timm" and plain:
            options = {"num_classes": len(subject.card.classes)}
            options |= ANY_SIZE if subject.resized else {}
            arguments = "".join(f", {name}={value}" for name, value in options.items())
            lines = [
                "import timm, torch",
                f'model = timm.create_model("{subject.name}"{arguments})',
                *_stem_lines(subject),
            ]
        else:
            return [
                "import torch, unfreeze",
                *_load_lines(subject),
                *torch_lines(subject),
            ]
        return [
            *lines,
            "from safetensors.torch import load_file",
            f'model.load_state_dict(load_file("{TENSORS}"))',
            "model.eval()",
            *torch_lines(subject),
        ]


def _load_lines(subject: ExportedModel) -> list[str]:
    if subject.gives != "features":
        return ['model = unfreeze.load(".")']
    return [
        "from unfreeze.transfer.predictor import load_features",
        'model = load_features(".")',
    ]


def _stem_lines(subject: ExportedModel) -> list[str]:
    """Lines that give a library's ResNet the small stem."""
    if not subject.small_stem:
        return []
    first, pooling = _stem_names(subject.network)
    layer = cast(nn.Conv2d, subject.network.get_submodule(first))
    convolution = (
        f"torch.nn.Conv2d({layer.in_channels}, {layer.out_channels}, 3, padding=1, "
        f"bias={layer.bias is not None})"
    )
    return [
        f'model.set_submodule("{first}", {convolution})',
        f'model.set_submodule("{pooling}", torch.nn.Identity())',
    ]


def _stem_names(network: nn.Module) -> tuple[str, str]:
    from unfreeze.models.stem import STEM_LAYERS

    names = dict(network.named_modules())
    return next(pair for pair in STEM_LAYERS if pair[0] in names and pair[1] in names)
