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
    """The knob of what pictures are read from."""
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
        "arithmetic of the network: auto takes bf16 where the hardware has it",
        choices=("auto", "fp32", "bf16", "fp16"),
        group="machine",
    )
    workers: int | None = knob(
        None, "processes that read and cut pictures (0: none)", low=0, group="machine"
    )


@dataclass(frozen=True)
class Told:
    """What is said of the pictures beside them."""

    labels: str | None = knob(
        None,
        "labels from elsewhere: a CSV or Parquet file (path, label, maybe split, group) joined by "
        "name, another column of the list itself, or a regular expression whose first group in a "
        "picture's path is its label",
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
        "splits from elsewhere: a run, or a CSV like its split.csv; pictures that it does not "
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
class Pictures:
    """Which pictures, and how they are kept."""

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
        "decode every file before the first step, a sample, or none",
        choices=("full", "sample", "off"),
        group="data",
    )
    store: str = knob(
        "auto",
        "where decoded pictures are held: memory, disk (a memory map that processes share and "
        "later runs find again) or off; auto takes memory for one process up to 1 GiB, else disk",
        choices=("auto", "memory", "disk", "off"),
        group="data",
    )
    store_budget: float = knob(
        16.0, "GiB that decoded pictures may take, in memory or on the disk", low=0, group="data"
    )
    limit: int | None = knob(
        None, "use at most N training pictures", low=1, group="data", unset="all"
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
        "go on from the folder's last checkpoint; with none, start and say so",
        bare="yes",
        choices=("yes", "auto"),
        group="run",
        cli_only=True,
    )
    overwrite: bool = knob(False, "empty the folder first", group="run", cli_only=True)
    dry_run: bool = knob(
        False, "print the plan with its reasons; touch no file", group="run", cli_only=True
    )
    seed: int = knob(0, "seed of every random choice", low=0, high=SEEDS, group="run")
    checkpoint_every: int = knob(
        1, "epochs between checkpoints (also at least every 5 minutes)", low=1, group="run"
    )
    keep_every: int | None = knob(
        None,
        "also keep a checkpoint of its own every N epochs, with its figures in its name",
        low=1,
        group="run",
        unset="off",
    )
    time_limit: str | None = knob(
        None,
        "save and end with 130 before this time since the start of the process is over: 30m, 2h, "
        "1-12:00:00, or minutes; with --resume auto the same command begins and goes on",
        group="run",
        unset="none",
        cli_only=True,
        metavar="TIME",
    )
    logger: tuple[str, ...] = knob(
        ("none",),
        "who else gets what goes into metrics.jsonl, one or several; each is an extra to install "
        "(unfreeze[wandb]); one that fails is named and dropped, and the run goes on",
        choices=LOGGERS,
        group="run",
    )
