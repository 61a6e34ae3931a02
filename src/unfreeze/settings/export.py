"""The knobs of `export`."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob
from unfreeze.settings.shared import Call

FORMATS = ("torchvision", "timm", "safetensors", "torchscript", "onnx")


@dataclass(frozen=True)
class ExportSettings(Call):
    """Writes a run's model in another tool's format, verified by comparing outputs."""

    run: str = knob("", "a run's folder, or its model/ folder", positional=True, path="input")
    to: str | None = knob(
        None, "which format", choices=FORMATS, unset="", metavar="FORMAT", needed=True
    )
    out: str | None = knob(
        None,
        "folder to write (new or empty)",
        cli_only=True,
        metavar="DIR",
        needed=True,
        path="output",
    )
    data: str | None = knob(
        None,
        "images to compare outputs on: folder, archive, list or built-in name "
        "(auto: the run's own views)",
        group="data",
        path="input",
    )
    data_root: str = knob(
        "data", "folder for built-in data sets", group="data", metavar="DIR", path="output"
    )
    overwrite: bool = knob(
        False, "replace what an earlier export wrote there", group="run", cli_only=True
    )
