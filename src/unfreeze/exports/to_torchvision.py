"""torchvision export: a state dict for a torchvision model."""

from pathlib import Path

import torch

from unfreeze.checkpoints.state import to_bytes
from unfreeze.errors import UsageError
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.format import LoadedExport
from unfreeze.exports.libraries import (
    USE_SAFETENSORS,
    check_library,
    from_torchvision,
    torchvision_options,
)
from unfreeze.exports.write import torch_lines
from unfreeze.runtime.atomic import write_bytes

FILE = "model.pth"


class Torchvision:
    """`model.pth`: a state dict, readable by `torch.load(weights_only=True)`."""

    def check(self, subject: ExportedModel) -> None:
        """UsageError unless names and shapes equal those of torchvision's network."""
        check_library("torchvision", subject, from_torchvision)
        if subject.resized:
            raise UsageError(
                f"torchvision's {subject.name} takes images of one size only, and this run used "
                f"{subject.preprocess.image_size} pixels.",
                USE_SAFETENSORS,
            )

    def write(self, subject: ExportedModel, folder: Path) -> None:
        """Write the state dict."""
        tensors = {name: tensor.contiguous() for name, tensor in subject.tensors().items()}
        write_bytes(folder / FILE, to_bytes(tensors))

    def read(self, subject: ExportedModel, folder: Path) -> LoadedExport:
        """Build the network by name and load the state dict strictly."""
        network = from_torchvision(subject).eval()
        network.load_state_dict(torch.load(folder / FILE, weights_only=True), strict=True)
        return LoadedExport(network, network.state_dict())

    def snippet(self, subject: ExportedModel) -> list[str]:
        """Lines with `torchvision.models.get_model`."""
        return [
            "import torch, torchvision",
            *network_lines(subject),
            f'model.load_state_dict(torch.load("{FILE}", weights_only=True))',
            "model.eval()",
            *torch_lines(subject),
        ]


def network_lines(subject: ExportedModel) -> list[str]:
    """Lines that build `model`, untrained, as `from_torchvision` does."""
    arguments = "".join(f", {name}={value}" for name, value in torchvision_options(subject).items())
    return [
        f'model = torchvision.models.get_model("{subject.name}", weights=None{arguments})',
        *(f'model.set_submodule("{layer}", torch.nn.Identity())' for layer in subject.identities),
    ]
