"""Export for the Hugging Face Hub: a folder that unfreeze loads, and timm where it can."""

from dataclasses import dataclass, replace
from pathlib import Path

from unfreeze.checkpoints.model_file import TRAINED_IMAGES, load_model
from unfreeze.errors import UsageError
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.format import LoadedExport
from unfreeze.exports.libraries import check_library, from_timm
from unfreeze.exports.model_card import without_folder
from unfreeze.exports.to_safetensors import Safetensors
from unfreeze.exports.to_timm import Timm


@dataclass(frozen=True)
class Hub:
    """`model.safetensors` and `model.json`, and timm's `config.json` if timm has the network.

    `repo`: USER/NAME, which the README names.
    """

    repo: str

    def check(self, subject: ExportedModel) -> None:
        """Every network is supported."""

    def write(self, subject: ExportedModel, folder: Path) -> None:
        """Write the files, without the record of the training images: it has thumbnails of them."""
        if in_timm(subject):
            Timm().write(subject, folder)
        Safetensors().write(subject, folder)
        (folder / TRAINED_IMAGES).unlink(missing_ok=True)

    def read(self, subject: ExportedModel, folder: Path) -> LoadedExport:
        """Load with timm if it has the network, else with unfreeze; checksums are checked."""
        load_model(folder)
        return (Timm() if in_timm(subject) else Safetensors()).read(subject, folder)

    def snippet(self, subject: ExportedModel) -> list[str]:
        """Lines that download the repository and load the model with unfreeze, and with timm."""
        load, shown = "unfreeze.load(folder)", 'print(model.predict(["image.jpg"]))'
        imports = ["import unfreeze"]
        if subject.gives == "features":
            imports = ["from unfreeze.transfer.predictor import load_features"]
            load, shown = "load_features(folder)", "print(model)"
        elif subject.texts:
            shown = 'print(model.predict(["a text"]))'
        timm = [
            "# or without unfreeze; classes and preprocessing are in model.pretrained_cfg",
            "import timm",
            f'model = timm.create_model("hf-hub:{self.repo}", pretrained=True)',
        ]
        return [
            "from huggingface_hub import snapshot_download",
            *imports,
            f'folder = snapshot_download("{self.repo}")',
            f"model = {load}",
            shown,
            *(timm if in_timm(subject) else ()),
        ]


def in_timm(subject: ExportedModel) -> bool:
    """Whether timm has this network, with the same names and shapes."""
    if subject.texts or subject.gives == "maps":
        return False
    try:
        check_library("timm", subject, from_timm)
    except UsageError:
        return False
    return True


def without_paths(subject: ExportedModel) -> ExportedModel:
    """The subject with names in place of this machine's paths: what is uploaded may go public."""
    about = {
        name: without_folder(value) if isinstance(value, str) else value
        for name, value in subject.card.provenance.items()
    }
    return replace(subject, card=replace(subject.card, provenance=about))
