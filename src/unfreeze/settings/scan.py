"""The knobs of `scan`."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob
from unfreeze.settings.shared import Call, sources


@dataclass(frozen=True)
class ScanSettings(Call):
    """Decodes every picture and names what is broken, odd, twice there or suspicious."""

    data: tuple[str, ...] = sources()
    out: str | None = knob(
        None,
        "folder for problems.csv and scan.html, a page with thumbnails",
        unset="none",
        metavar="DIR",
        path="output",
    )
    quarantine: str | None = knob(
        None,
        "move what cannot be used here, with a manifest; of an archive, list it for later runs",
        unset="none",
        metavar="DIR",
        path="output",
    )
    undo: str | None = knob(
        None,
        "bring back what --quarantine moved to this folder",
        unset="nothing",
        metavar="DIR",
        path="input",
    )
    seconds: float = knob(30.0, "for one file; a decoder that takes longer is ended", low=0.1)
    workers: int | None = knob(
        None, "processes that decode (auto: one a core)", low=1, group="machine"
    )
    data_root: str = knob(
        "data", "folder for built-in data sets", group="data", metavar="DIR", path="output"
    )
