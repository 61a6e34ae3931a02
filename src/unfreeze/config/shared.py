"""Settings that several commands share."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from unfreeze.config.field import setting

SEEDS = 2**32 - 1  # largest seed that every generator accepts
LOGGERS = ("none", "tensorboard", "wandb", "mlflow")
DATA = "one or more: folder, archive, CSV or Parquet file, shards, URL or built-in name"


# type of a Python function's `data` parameter
Data = str | PathLike[str] | Sequence[str | PathLike[str]]


def data_setting() -> Any:
    """The setting DATA: where images are read from."""
    return setting((), DATA, positional=True, whole=True, path="input")


def data_name(data: str | Sequence[str]) -> str:
    """DATA as text for messages; a URL without its query, which may hold a password."""
    names = [data] if isinstance(data, str) else data
    return ", ".join(name.partition("?")[0] if "://" in name else name for name in names)


@dataclass(frozen=True)
class CallOptions:
    """Options of the call itself; every command has them."""

    config: str | None = setting(
        None,
        "read settings from a TOML file",
        group="call",
        cli_only=True,
        metavar="FILE",
        path="input",
    )
    json: bool = setting(
        False, "print one JSON document to stdout at the end", group="call", cli_only=True
    )
    debug: bool = setting(False, "show tracebacks", group="call", cli_only=True)


@dataclass(frozen=True)
class MachineOptions:
    """Device, precision and workers."""

    device: str = setting(
        "auto",
        "compute device",
        choices=("auto", "cpu", "cuda", "mps"),
        group="machine",
        basic=9,
    )
    precision: str = setting(
        "auto",
        "numerical precision (mixed precision for bf16 and fp16): auto uses bf16 if the hardware "
        "supports it",
        choices=("auto", "fp32", "bf16", "fp16"),
        group="machine",
    )
    workers: int | None = setting(
        None, "data loading workers (0: load in the main process)", low=0, group="machine"
    )


@dataclass(frozen=True)
class LabelOptions:
    """Labels and splits from other files."""

    labels: str | None = setting(
        None,
        "source of the labels: a CSV or Parquet file (path, label, optional split and group) "
        "matched by file name, another column of the list itself, or a regular expression whose "
        "first group in an image's path is its label",
        group="data",
        unset="the folders, or the list itself",
        metavar="FILE",
        path="input",
    )
    label_column: str | None = setting(
        None,
        "column of the labels in the file of --labels, or in DATA if that is a list",
        group="data",
        unset="label, class, ..., else the only other column",
        metavar="NAME",
    )
    split_from: str | None = setting(
        None,
        "source of the splits: a run, or a CSV like its split.csv; images that it does not list "
        "are not used",
        group="data",
        unset="the data's own",
        metavar="RUN|FILE",
        path="input",
    )


@dataclass(frozen=True)
class LabelSetOptions:
    """Images with several labels."""

    label_separator: str | None = setting(
        None,
        "what separates the labels of an image in the column of labels",
        group="multilabel",
        metavar="TEXT",
        unset="that of the model, ; or |",
    )
    label_columns: tuple[str, ...] | None = setting(
        None,
        "columns of 0 and 1, one for each class, instead of a column of labels: a,b,c; an empty "
        "field is unknown",
        group="multilabel",
        metavar="NAME",
        unset="those of the model, or none",
        whole=True,
    )


def label_arguments(s: LabelOptions) -> dict[str, Any]:
    """The keyword arguments of `build_index` for these settings."""
    return {"labels": s.labels, "label_column": s.label_column, "split_from": s.split_from}


@dataclass(frozen=True)
class ImageOptions:
    """Which images are used, and how they are decoded and cached."""

    data_root: str = setting(
        "data", "folder for built-in datasets", group="data", metavar="DIR", path="output"
    )
    range: str | None = setting(
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
    channels: tuple[int, ...] | None = setting(
        None,
        "channels of multi-channel files (such as TIFF from cameras and satellites) to use, "
        "counted from 0: one or three",
        low=0,
        group="data",
        unset="those of the weights, else the first three",
    )
    scan: str = setting(
        "full",
        "decode files before training to find broken ones: all (full), a sample, or none (off)",
        choices=("full", "sample", "off"),
        group="data",
    )
    store: str = setting(
        "auto",
        "pixel cache: keep decoded images in memory, on disk (a memory map that processes and "
        "later runs share), or off; auto uses memory for one process up to 1 GiB, else disk",
        choices=("auto", "memory", "disk", "off"),
        group="data",
    )
    store_budget: float = setting(
        16.0, "size limit of the pixel cache in GiB, in memory or on disk", low=0, group="data"
    )
    limit: int | None = setting(
        None, "use at most N training images", low=1, group="data", unset="all"
    )


@dataclass(frozen=True)
class RunOptions:
    """The run folder: checkpoints, resuming, seed and trackers."""

    out: str | None = setting(
        None,
        "run folder (new or empty)",
        group="run",
        cli_only=True,
        metavar="RUN",
        needed=True,
        path="output",
        basic=1,
    )
    resume: str | None = setting(
        None,
        "resume from the last checkpoint, if any",
        bare="yes",
        choices=("yes", "auto"),
        group="run",
        cli_only=True,
        basic=10,
    )
    overwrite: bool = setting(
        False, "delete the previous run in that folder first", group="run", cli_only=True
    )
    dry_run: bool = setting(
        False,
        "print the plan with its reasons; write nothing",
        group="run",
        cli_only=True,
        basic=11,
    )
    seed: int = setting(0, "random seed", low=0, high=SEEDS, group="run")
    checkpoint_every: int = setting(
        1, "epochs between checkpoints (also at least every 5 minutes)", low=1, group="run"
    )
    keep_every: int | None = setting(
        None,
        "also keep a separate checkpoint every N epochs, with its metrics in the file name",
        low=1,
        group="run",
        unset="off",
    )
    time_limit: str | None = setting(
        None,
        "save and stop (exit code 130) before this wall-clock time: 30m, 2h, 1-12:00:00, or "
        "minutes; with --resume auto the same command starts and resumes",
        group="run",
        unset="none",
        cli_only=True,
        metavar="TIME",
    )
    logger: tuple[str, ...] = setting(
        ("none",),
        "experiment trackers for the metrics, one or more, each an extra (unfreeze[wandb]); a "
        "tracker that fails does not stop the run",
        choices=LOGGERS,
        group="run",
    )


@dataclass(frozen=True)
class TimeBudgetOptions:
    """The time that a run may take."""

    time_budget: str | None = setting(
        None,
        "time that the run may take (30m, 1h, 1-12:00:00, or minutes): architecture, image size "
        "and epochs that are not given are chosen to fit, by the speed measured on this machine",
        group="run",
        unset="none",
        metavar="TIME",
    )
