"""The knobs of the verbs that use a model."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob
from unfreeze.settings.pretrain import AUGMENTS
from unfreeze.settings.shared import SEEDS, Call, Machine, Told, sources

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class _Serving(Machine):
    batch_size: int = knob(64, "pictures at once", low=1)
    data_root: str = knob(
        "data", "folder for built-in data sets", group="data", metavar="DIR", path="output"
    )


@dataclass(frozen=True)
class EvaluateSettings(Call, Told, _Serving):
    """How good is a model on labelled pictures."""

    run: str = knob("", "a run's folder, or its model/ folder", positional=True, path="input")
    data: tuple[str, ...] = sources()
    split: str | None = knob(
        None, "which pictures (auto: test, else val, else held out, else all)", choices=SPLITS
    )
    weights_of: str = knob(
        "both",
        "which weights: those of the selected epoch (best), of the last, or both beside each other",
        choices=("both", "best", "last"),
    )
    temperature: str = knob(
        "off",
        "fit a temperature on the validation pictures and show what it brings; keep stores it "
        "with the model, and predict goes by it",
        choices=("off", "fit", "keep"),
    )


@dataclass(frozen=True)
class PredictSettings(Call, _Serving):
    """Labels for pictures."""

    run: str = knob("", "a run's folder, or its model/ folder", positional=True, path="input")
    images: tuple[str, ...] = knob(
        (), "pictures, folders or archives", positional=True, whole=True, path="input"
    )
    out: str | None = knob(
        None, "write the CSV here instead of stdout", metavar="FILE", path="output"
    )


@dataclass(frozen=True)
class EmbedSettings(Call, Told, _Serving):
    """Features for pictures."""

    weights: str = knob(
        "", "a run's folder, a model/ folder or a checkpoint file", positional=True, path="input"
    )
    data: tuple[str, ...] = sources()
    out: str | None = knob(
        None, "the .npz file to write", metavar="FILE", needed=True, path="output"
    )
    arch: str | None = knob(None, "network, where the weights do not say it")
    split: str | None = knob(None, "which pictures (auto: all)", choices=SPLITS)


@dataclass(frozen=True)
class ShowSettings(Call, Told):
    """One page about a data set: samples, sizes, class counts, views, problems."""

    data: tuple[str, ...] = sources()
    out: str | None = knob(
        None,
        "the HTML file to write (auto: NAME.html in this folder)",
        metavar="FILE",
        path="output",
    )
    run: str | None = knob(
        None,
        "a run whose views and input are shown (auto: those that pretrain and finetune would take)",
        metavar="RUN",
        path="input",
    )
    augment: str | None = knob(None, "kind of pictures, for the views", choices=AUGMENTS)
    image_size: int | None = knob(None, "side of the large view in pixels", low=8)
    scan: str = knob(
        "sample",
        "decode every file to find problems, a sample, or none; what is known is shown anyway",
        choices=("full", "sample", "off"),
        group="data",
    )
    range: str | None = knob(
        None,
        "what is black and white in 16-bit and float pictures, as in pretrain",
        choices=("auto", "full", "percentile"),
        group="data",
        unset="that of the run, else auto",
    )
    channels: tuple[int, ...] | None = knob(
        None,
        "channels of the files that are used, counted from 0: three, or one (of many, as in TIFF "
        "files of cameras and satellites)",
        low=0,
        group="data",
        unset="those of the run, else the first three",
    )
    samples: int = knob(6, "pictures of each class", low=1)
    seed: int = knob(0, "seed of the samples and views", low=0, high=SEEDS)
    workers: int | None = knob(None, "processes that decode", low=1, group="machine")
    data_root: str = knob(
        "data", "folder for built-in data sets", group="data", metavar="DIR", path="output"
    )


@dataclass(frozen=True)
class InspectSettings(Call):
    """What a checkpoint of any origin holds, and which network it is of."""

    file: str = knob(
        "",
        "a checkpoint of any origin, a run's folder or its model/",
        positional=True,
        path="input",
    )


@dataclass(frozen=True)
class SummarySettings(Call):
    """The layer table."""

    arch: str = knob(
        "", "a network's name, a run's folder or a checkpoint", positional=True, path="input"
    )
    input: str = knob("3x224x224", "channels x height x width")
    classes: int | None = knob(None, "width of a new head (auto: the network's own)", low=1)
    freeze: str | None = knob(
        None,
        "what stands still: none, all, norms, stage:N or regex:PATTERN",
        unset="as in the run; none",
    )
    stem: str = knob("imagenet", "first layers", choices=("imagenet", "small"))


@dataclass(frozen=True)
class ReportSettings(Call):
    """Draws a run's report from its files."""

    run: str = knob("", "a run's folder", positional=True, path="input")


@dataclass(frozen=True)
class DemoSettings(Call, Machine):
    """The main job on scikit-learn's digits."""

    out: str | None = knob(
        None, "folder of the run (auto: a new one under runs/)", metavar="RUN", path="output"
    )
    seed: int = knob(0, "seed of the pretraining", low=0, high=SEEDS)
    epochs: int | None = knob(None, "epochs of pretraining", low=1)
    seeds: int = knob(5, "label draws for each number of labels", low=1)
    dry_run: bool = knob(False, "print the plan; touch no file", cli_only=True)
