"""Knobs that several verbs share."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from unfreeze.settings.knob import knob

SEEDS = 2**32 - 1  # what every generator takes
LOGGERS = ("none", "tensorboard", "wandb", "mlflow")
DATA = "one or several: folder, archive, CSV or Parquet, shards, address or built-in name"


# what a function takes for DATA
Data = str | PathLike[str] | Sequence[str | PathLike[str]]


def sources() -> Any:
    """The knob of what images are read from."""
    return knob((), DATA, positional=True, whole=True, path="input")


def spoken(data: str | Sequence[str]) -> str:
    """What was given as DATA, for a sentence; of an address not what may be a password."""
    places = [data] if isinstance(data, str) else data
    return ", ".join(p.partition("?")[0] if "://" in p else p for p in places)


@dataclass(frozen=True)
class Call:
    """How the command was called; every verb has these."""

    config: str | None = knob(
        None, "settings from a TOML file", group="call", cli_only=True, metavar="FILE", path="input"
    )
    json: bool = knob(False, "one JSON document on stdout at the end", group="call", cli_only=True)
    debug: bool = knob(False, "show tracebacks", group="call", cli_only=True)


@dataclass(frozen=True)
class Machine:
    """Where it runs."""

    device: str = knob(
        "auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"), group="machine"
    )
    precision: str = knob(
        "auto",
        "numerical precision: auto takes bf16 where the hardware has it",
        choices=("auto", "fp32", "bf16", "fp16"),
        group="machine",
    )
    workers: int | None = knob(
        None, "processes that load images (0: the main process)", low=0, group="machine"
    )


@dataclass(frozen=True)
class Told:
    """Labels and splits from elsewhere."""

    labels: str | None = knob(
        None,
        "labels from elsewhere: a CSV or Parquet file (path, label, maybe split, group) joined by "
        "name, another column of the list itself, or a regular expression whose first group in a "
        "image's path is its label",
        group="data",
        unset="the folders, or the list itself",
        metavar="FILE",
        path="input",
    )
    label_column: str | None = knob(
        None,
        "column of the labels, in the list that --labels names or in a list that is DATA itself",
        group="data",
        unset="label, class, ..., else the only other column",
        metavar="NAME",
    )
    split_from: str | None = knob(
        None,
        "splits from elsewhere: a run, or a CSV like its split.csv; images that it does not "
        "name are not used",
        group="data",
        unset="the data's own",
        metavar="RUN|FILE",
        path="input",
    )


def said_of(s: Told) -> dict[str, Any]:
    """What `build_index` is given of it."""
    return {"labels": s.labels, "label_column": s.label_column, "split_from": s.split_from}


@dataclass(frozen=True)
class ImageOptions:
    """Which images, and how they are kept."""

    data_root: str = knob(
        "data", "folder for built-in data sets", group="data", metavar="DIR", path="output"
    )
    range: str | None = knob(
        None,
        "which values are black and white in 16-bit and float images: one range for the whole "
        "dataset where its values allow it (auto), each image by its own depth or values (image), "
        "by the type (full), 0.5 % to 99.5 % of each image (percentile), or LOW:HIGH",
        choices=("auto", "image", "full", "percentile"),
        shape=(r"-?\d+(\.\d+)?(e-?\d+)?:-?\d+(\.\d+)?(e-?\d+)?", "LOW:HIGH"),
        group="data",
        unset="that of the weights, else auto",
    )
    channels: tuple[int, ...] | None = knob(
        None,
        "channels of the files that are used, counted from 0: three, or one (of many, as in TIFF "
        "files of cameras and satellites)",
        low=0,
        group="data",
        unset="those of the weights, else the first three",
    )
    scan: str = knob(
        "full",
        "decode all files before training to find broken ones, a sample, or none",
        choices=("full", "sample", "off"),
        group="data",
    )
    store: str = knob(
        "auto",
        "where decoded images are held: memory, disk (a memory map that processes share and "
        "later runs find again) or off; auto takes memory for one process up to 1 GiB, else disk",
        choices=("auto", "memory", "disk", "off"),
        group="data",
    )
    store_budget: float = knob(
        16.0, "GiB that decoded images may take, in memory or on the disk", low=0, group="data"
    )
    limit: int | None = knob(
        None, "use at most N training images", low=1, group="data", unset="all"
    )


@dataclass(frozen=True)
class Run:
    """The run's folder."""

    out: str | None = knob(
        None,
        "folder of the run (new or empty)",
        group="run",
        cli_only=True,
        metavar="RUN",
        needed=True,
        path="output",
    )
    resume: str | None = knob(
        None,
        "resume from the run's last checkpoint; without one, start from the beginning",
        bare="yes",
        choices=("yes", "auto"),
        group="run",
        cli_only=True,
    )
    overwrite: bool = knob(
        False, "delete the previous run in that folder first", group="run", cli_only=True
    )
    dry_run: bool = knob(
        False, "print the plan with its reasons and write nothing", group="run", cli_only=True
    )
    seed: int = knob(0, "seed of every random choice", low=0, high=SEEDS, group="run")
    checkpoint_every: int = knob(
        1, "epochs between checkpoints (also at least every 5 minutes)", low=1, group="run"
    )
    keep_every: int | None = knob(
        None,
        "also keep a separate checkpoint every N epochs, with its metrics in its name",
        low=1,
        group="run",
        unset="off",
    )
    time_limit: str | None = knob(
        None,
        "save and stop (exit code 130) before this much time has passed: 30m, 2h, 1-12:00:00, or "
        "minutes; with --resume auto the same command starts and resumes",
        group="run",
        unset="none",
        cli_only=True,
        metavar="TIME",
    )
    logger: tuple[str, ...] = knob(
        ("none",),
        "experiment trackers that also get the metrics, one or several, each an extra "
        "(unfreeze[wandb]); a tracker that fails does not stop the run",
        choices=LOGGERS,
        group="run",
    )


@dataclass(frozen=True)
class Budget:
    """How long it may take."""

    time_budget: str | None = knob(
        None,
        "time that the run may take (30m, 1h, 1-12:00:00, or minutes): network, image size and "
        "epochs that are not given are chosen to fit, by the speed measured on this machine",
        group="run",
        unset="none",
        metavar="TIME",
    )
