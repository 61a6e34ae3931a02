"""Settings that several commands share."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from unfreeze.settings.knob import knob

SEEDS = 2**32 - 1  # largest seed that every generator accepts
LOGGERS = ("none", "tensorboard", "wandb", "mlflow")
DATA = "one or more: folder, archive, CSV or Parquet file, shards, URL or built-in name"


# type of a Python function's `data` parameter
Data = str | PathLike[str] | Sequence[str | PathLike[str]]


def sources() -> Any:
    """The setting DATA: where images are read from."""
    return knob((), DATA, positional=True, whole=True, path="input")


def spoken(data: str | Sequence[str]) -> str:
    """DATA as text for messages; a URL without its query, which may hold a password."""
    names = [data] if isinstance(data, str) else data
    return ", ".join(name.partition("?")[0] if "://" in name else name for name in names)


@dataclass(frozen=True)
class Call:
    """Options of the call itself; every command has them."""

    config: str | None = knob(
        None,
        "read settings from a TOML file",
        group="call",
        cli_only=True,
        metavar="FILE",
        path="input",
    )
    json: bool = knob(
        False, "print one JSON document to stdout at the end", group="call", cli_only=True
    )
    debug: bool = knob(False, "show tracebacks", group="call", cli_only=True)


@dataclass(frozen=True)
class Machine:
    """Device, precision and workers."""

    device: str = knob(
        "auto", "compute device", choices=("auto", "cpu", "cuda", "mps"), group="machine"
    )
    precision: str = knob(
        "auto",
        "numerical precision (mixed precision for bf16 and fp16): auto uses bf16 if the hardware "
        "supports it",
        choices=("auto", "fp32", "bf16", "fp16"),
        group="machine",
    )
    workers: int | None = knob(
        None, "data loading workers (0: load in the main process)", low=0, group="machine"
    )


@dataclass(frozen=True)
class Told:
    """Labels and splits from other files."""

    labels: str | None = knob(
        None,
        "source of the labels: a CSV or Parquet file (path, label, optional split and group) "
        "matched by file name, another column of the list itself, or a regular expression whose "
        "first group in an image's path is its label",
        group="data",
        unset="the folders, or the list itself",
        metavar="FILE",
        path="input",
    )
    label_column: str | None = knob(
        None,
        "column of the labels in the file of --labels, or in DATA if that is a list",
        group="data",
        unset="label, class, ..., else the only other column",
        metavar="NAME",
    )
    split_from: str | None = knob(
        None,
        "source of the splits: a run, or a CSV like its split.csv; images that it does not list "
        "are not used",
        group="data",
        unset="the data's own",
        metavar="RUN|FILE",
        path="input",
    )


def said_of(s: Told) -> dict[str, Any]:
    """The keyword arguments of `build_index` for these settings."""
    return {"labels": s.labels, "label_column": s.label_column, "split_from": s.split_from}


@dataclass(frozen=True)
class ImageOptions:
    """Which images are used, and how they are decoded and cached."""

    data_root: str = knob(
        "data", "folder for built-in datasets", group="data", metavar="DIR", path="output"
    )
    range: str | None = knob(
        None,
        "intensity range of 16-bit and float images, from black to white: one for the whole "
        "dataset if its values allow it (auto), one per image by its bit depth or values (image), "
        "that of the data type (full), percentiles 0.5 to 99.5 of each image (percentile), or "
        "LOW:HIGH",
        choices=("auto", "image", "full", "percentile"),
        shape=(r"-?\d+(\.\d+)?(e-?\d+)?:-?\d+(\.\d+)?(e-?\d+)?", "LOW:HIGH"),
        group="data",
        unset="that of the weights, else auto",
    )
    channels: tuple[int, ...] | None = knob(
        None,
        "channels of multi-channel files (such as TIFF from cameras and satellites) to use, "
        "counted from 0: one or three",
        low=0,
        group="data",
        unset="those of the weights, else the first three",
    )
    scan: str = knob(
        "full",
        "decode files before training to find broken ones: all (full), a sample, or none (off)",
        choices=("full", "sample", "off"),
        group="data",
    )
    store: str = knob(
        "auto",
        "pixel cache: keep decoded images in memory, on disk (a memory map that processes and "
        "later runs share), or off; auto uses memory for one process up to 1 GiB, else disk",
        choices=("auto", "memory", "disk", "off"),
        group="data",
    )
    store_budget: float = knob(
        16.0, "size limit of the pixel cache in GiB, in memory or on disk", low=0, group="data"
    )
    limit: int | None = knob(
        None, "use at most N training images", low=1, group="data", unset="all"
    )


@dataclass(frozen=True)
class Run:
    """The run folder: checkpoints, resuming, seed and trackers."""

    out: str | None = knob(
        None,
        "run folder (new or empty)",
        group="run",
        cli_only=True,
        metavar="RUN",
        needed=True,
        path="output",
    )
    resume: str | None = knob(
        None,
        "resume from the last checkpoint; if there is none, start from the beginning",
        bare="yes",
        choices=("yes", "auto"),
        group="run",
        cli_only=True,
    )
    overwrite: bool = knob(
        False, "delete the previous run in that folder first", group="run", cli_only=True
    )
    dry_run: bool = knob(
        False, "print the plan with its reasons; write nothing", group="run", cli_only=True
    )
    seed: int = knob(0, "random seed", low=0, high=SEEDS, group="run")
    checkpoint_every: int = knob(
        1, "epochs between checkpoints (also at least every 5 minutes)", low=1, group="run"
    )
    keep_every: int | None = knob(
        None,
        "also keep a separate checkpoint every N epochs, with its metrics in the file name",
        low=1,
        group="run",
        unset="off",
    )
    time_limit: str | None = knob(
        None,
        "save and stop (exit code 130) before this wall-clock time: 30m, 2h, 1-12:00:00, or "
        "minutes; with --resume auto the same command starts and resumes",
        group="run",
        unset="none",
        cli_only=True,
        metavar="TIME",
    )
    logger: tuple[str, ...] = knob(
        ("none",),
        "experiment trackers for the metrics, one or more, each an extra (unfreeze[wandb]); a "
        "tracker that fails does not stop the run",
        choices=LOGGERS,
        group="run",
    )


@dataclass(frozen=True)
class Budget:
    """The time that a run may take."""

    time_budget: str | None = knob(
        None,
        "time that the run may take (30m, 1h, 1-12:00:00, or minutes): architecture, image size "
        "and epochs that are not given are chosen to fit, by the speed measured on this machine",
        group="run",
        unset="none",
        metavar="TIME",
    )
