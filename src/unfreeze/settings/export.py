"""Settings of `export`."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob
from unfreeze.settings.shared import Call

FORMATS = ("torchvision", "timm", "safetensors", "torchscript", "onnx")


@dataclass(frozen=True)
class ExportSettings(Call):
    """Exports a run's model to another tool's format, verified by comparing outputs."""

    run: str = knob("", "a run folder, or its model/ folder", positional=True, path="input")
    to: str | None = knob(
        None, "export format", choices=FORMATS, unset="", metavar="FORMAT", needed=True
    )
    out: str | None = knob(
        None,
        "output folder (new or empty)",
        cli_only=True,
        metavar="DIR",
        needed=True,
        path="output",
    )
    data: str | None = knob(
        None,
        "images to compare outputs on: folder, archive, list or built-in name "
        "(auto: views of the run's training images)",
        group="data",
        path="input",
    )
    data_root: str = knob(
        "data", "folder for built-in datasets", group="data", metavar="DIR", path="output"
    )
    overwrite: bool = knob(
        False, "replace an earlier export in that folder", group="run", cli_only=True
    )
