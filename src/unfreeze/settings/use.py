"""The knobs of the verbs that use a model."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob
from unfreeze.settings.pretrain import AUGMENTS
from unfreeze.settings.shared import SEEDS, Call, Machine, Told, sources

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class _Serving(Machine):
    batch_size: int = knob(64, "images per batch", low=1)
    data_root: str = knob(
        "data", "folder for built-in data sets", group="data", metavar="DIR", path="output"
    )


@dataclass(frozen=True)
class EvaluateSettings(Call, Told, _Serving):
    """Measures a model on labelled images: accuracy with its interval, confusion, mistakes."""

    run: str = knob("", "a run's folder, or its model/ folder", positional=True, path="input")
    data: tuple[str, ...] = sources()
    split: str | None = knob(
        None,
        "split to evaluate (auto: test, else val, else what the run held out, else all)",
        choices=SPLITS,
    )
    weights_of: str = knob(
        "both",
        "which weights: of the best epoch, of the last, or both",
        choices=("both", "best", "last"),
    )
    temperature: str = knob(
        "off",
        "calibrate probabilities with a temperature fitted on the validation images: fit shows "
        "the effect, keep also stores it with the model for predict",
        choices=("off", "fit", "keep"),
    )


@dataclass(frozen=True)
class PredictSettings(Call, _Serving):
    """Predicts the class of images."""

    run: str = knob("", "a run's folder, or its model/ folder", positional=True, path="input")
    images: tuple[str, ...] = knob(
        (), "images, folders or archives", positional=True, whole=True, path="input"
    )
    out: str | None = knob(
        None, "write the CSV here instead of stdout", metavar="FILE", path="output"
    )


@dataclass(frozen=True)
class EmbedSettings(Call, Told, _Serving):
    """Computes the features of images."""

    weights: str = knob(
        "", "a run's folder, a model/ folder or a checkpoint file", positional=True, path="input"
    )
    data: tuple[str, ...] = sources()
    out: str | None = knob(
        None, "the .npz file to write", metavar="FILE", needed=True, path="output"
    )
    arch: str | None = knob(None, "network, where the weights do not say it")
    split: str | None = knob(None, "which images (auto: all)", choices=SPLITS)


@dataclass(frozen=True)
class ShowSettings(Call, Told):
    """Draws a page about a dataset: samples, sizes, class counts, augmented views, problems."""

    data: tuple[str, ...] = sources()
    out: str | None = knob(
        None,
        "the HTML file to write (auto: NAME.html in this folder)",
        metavar="FILE",
        path="output",
    )
    run: str | None = knob(
        None,
        "a run whose input and random views are shown (auto: those of a new pretraining)",
        metavar="RUN",
        path="input",
    )
    augment: str | None = knob(None, "augmentation of the views shown", choices=AUGMENTS)
    image_size: int | None = knob(None, "side of the large crop in pixels", low=8)
    scan: str = knob(
        "sample",
        "decode all files to find problems, a sample, or none; earlier findings are always shown",
        choices=("full", "sample", "off"),
        group="data",
    )
    range: str | None = knob(
        None,
        "which values are black and white in 16-bit and float images, as in pretrain",
        choices=("auto", "full", "percentile"),
        group="data",
        unset="that of the run, else auto",
    )
    channels: tuple[int, ...] | None = knob(
        None,
        "channels of multi-channel files to use, counted from 0: one or three",
        low=0,
        group="data",
        unset="those of the run, else the first three",
    )
    samples: int = knob(6, "sample images of each class", low=1)
    seed: int = knob(0, "seed of the samples and views", low=0, high=SEEDS)
    workers: int | None = knob(None, "processes that decode", low=1, group="machine")
    data_root: str = knob(
        "data", "folder for built-in data sets", group="data", metavar="DIR", path="output"
    )


@dataclass(frozen=True)
class InspectSettings(Call):
    """Says what a checkpoint of any origin holds, and of which network it is."""

    file: str = knob(
        "",
        "a checkpoint of any origin, a run's folder or its model/",
        positional=True,
        path="input",
    )


@dataclass(frozen=True)
class SummarySettings(Call):
    """Lists the layers of a network: output shapes, parameters, what is frozen."""

    arch: str = knob(
        "", "a network's name, a run's folder or a checkpoint", positional=True, path="input"
    )
    input: str = knob("3x224x224", "channels x height x width")
    classes: int | None = knob(
        None, "number of classes of a new head (auto: the network's own)", low=1
    )
    freeze: str | None = knob(
        None,
        "which layers are frozen: none, all, norms, stage:N or regex:PATTERN",
        unset="as in the run; none",
    )
    stem: str = knob("imagenet", "first layers", choices=("imagenet", "small"))


@dataclass(frozen=True)
class ReportSettings(Call):
    """Draws the report of a run again from its files."""

    run: str = knob("", "a run's folder", positional=True, path="input")


@dataclass(frozen=True)
class CacheSettings(Call):
    """Lists what is cached between runs, where and how large, or removes it."""

    clear: bool = knob(
        False,
        "remove what is cached (only what unfreeze wrote; not while a run uses it)",
        cli_only=True,
    )


@dataclass(frozen=True)
class DemoSettings(Call, Machine):
    """Runs pretraining and transfer on handwritten digits that come with scikit-learn."""

    out: str | None = knob(
        None, "folder of the run (auto: a new one under runs/)", metavar="RUN", path="output"
    )
    seed: int = knob(0, "seed of the pretraining", low=0, high=SEEDS)
    epochs: int | None = knob(None, "epochs of pretraining", low=1)
    seeds: int = knob(5, "label draws for each number of labels", low=1)
    dry_run: bool = knob(False, "print the plan; touch no file", cli_only=True)
