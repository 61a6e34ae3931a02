"""Settings of `scan`."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob
from unfreeze.settings.shared import Call, sources


@dataclass(frozen=True)
class ScanSettings(Call):
    """Decodes every image and lists broken, unusual, duplicate and mislabelled files."""

    data: tuple[str, ...] = sources()
    out: str | None = knob(
        None,
        "folder for problems.csv and scan.html (a page with thumbnails)",
        unset="none",
        metavar="DIR",
        path="output",
    )
    quarantine: str | None = knob(
        None,
        "move unusable files to this folder, with a manifest for --undo; an archive gets a list of "
        "exclusions instead",
        unset="none",
        metavar="DIR",
        path="output",
    )
    undo: str | None = knob(
        None,
        "restore the files that --quarantine moved to this folder",
        unset="nothing",
        metavar="DIR",
        path="input",
    )
    seconds: float = knob(30.0, "decoding timeout per file in seconds", low=0.1)
    workers: int | None = knob(
        None, "decoding processes (auto: one per core)", low=1, group="machine"
    )
    data_root: str = knob(
        "data", "folder for built-in datasets", group="data", metavar="DIR", path="output"
    )
