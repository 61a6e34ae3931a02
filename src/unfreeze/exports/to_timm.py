"""timm export: a folder for `timm.create_model("local-dir:...", pretrained=True)`."""

from pathlib import Path
from typing import Any

from torch import nn

from unfreeze.checkpoints.model_file import save_tensors
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.format import LoadedExport
from unfreeze.exports.libraries import check_library, from_timm
from unfreeze.exports.write import timm_crop_pct, torch_lines
from unfreeze.models.position_embeddings import ANY_SIZE
from unfreeze.runtime.atomic import write_json

TENSORS, CONFIG = "model.safetensors", "config.json"


class Timm:
    """`model.safetensors` and `config.json`, as in timm's models on the Hugging Face Hub."""

    def check(self, subject: ExportedModel) -> None:
        """UsageError unless names and shapes equal those of timm's network."""
        check_library("timm", subject, from_timm)

    def write(self, subject: ExportedModel, folder: Path) -> None:
        """Write the tensors, then the configuration with classes and preprocessing."""
        save_tensors(folder / TENSORS, subject.tensors())
        write_json(folder / CONFIG, _config(subject))

    def read(self, subject: ExportedModel, folder: Path) -> LoadedExport:
        """Load the folder with timm."""
        import timm

        network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
        return LoadedExport(network.eval(), network.state_dict())

    def snippet(self, subject: ExportedModel) -> list[str]:
        """Lines with `timm.create_model`."""
        return [
            "import timm, torch",
            'model = timm.create_model("local-dir:.", pretrained=True).eval()',
            *torch_lines(subject),
        ]


CROP_MODES = {"crop": "center", "squash": "squash", "pad": "border"}  # timm's names


def _config(subject: ExportedModel) -> dict[str, Any]:
    model: Any = from_timm(subject)
    cfg, p, count = model.pretrained_cfg, subject.preprocess, len(subject.card.classes)
    pretrained_cfg = {
        "input_size": [3, p.image_size, p.image_size],
        "fixed_input_size": bool(cfg.get("fixed_input_size", False)),
        "interpolation": p.interpolation,
        "crop_pct": timm_crop_pct(p) if p.fit == "crop" else 1.0,
        "crop_mode": CROP_MODES[p.fit],
        "mean": list(p.mean),
        "std": list(p.std),
        "num_classes": count,
        "first_conv": cfg.get("first_conv"),
        "classifier": cfg.get("classifier"),
        "custom_load": False,
    }
    label_names = {"label_names": list(subject.card.classes)} if count else {}
    return {
        "architecture": subject.name,
        "num_classes": count,
        "num_features": int(model.num_features),
        **label_names,
        **({"model_args": ANY_SIZE} if subject.resized else {}),
        "pretrained_cfg": pretrained_cfg,
    }
