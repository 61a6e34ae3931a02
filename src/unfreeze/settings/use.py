"""Settings of the commands that use a model."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob
from unfreeze.settings.pretrain import AUGMENTS
from unfreeze.settings.shared import SEEDS, Call, Machine, Told, sources

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class _Serving(Machine):
    batch_size: int = knob(64, "images per batch", low=1)
    data_root: str = knob(
        "data", "folder for built-in datasets", group="data", metavar="DIR", path="output"
    )


@dataclass(frozen=True)
class EvaluateSettings(Call, Told, _Serving):
    """Evaluates a model on labelled images: accuracy with interval, confusion matrix, mistakes."""

    run: str = knob("", "a run folder, or its model/ folder", positional=True, path="input")
    data: tuple[str, ...] = sources()
    split: str | None = knob(
        None,
        "split to evaluate (auto: test, else val, else what the run held out, else everything)",
        choices=SPLITS,
    )
    weights_of: str = knob(
        "both",
        "weights to evaluate: of the best epoch, of the last, or both",
        choices=("both", "best", "last"),
    )
    temperature: str = knob(
        "off",
        "temperature scaling of the probabilities, fitted on the validation images: fit shows the "
        "effect, keep also stores it with the model for predict",
        choices=("off", "fit", "keep"),
    )


@dataclass(frozen=True)
class PredictSettings(Call, _Serving):
    """Predicts the class of images."""

    run: str = knob("", "a run folder, or its model/ folder", positional=True, path="input")
    images: tuple[str, ...] = knob(
        (), "images, folders or archives", positional=True, whole=True, path="input"
    )
    out: str | None = knob(
        None, "write the CSV to this file instead of stdout", metavar="FILE", path="output"
    )


@dataclass(frozen=True)
class EmbedSettings(Call, Told, _Serving):
    """Computes the features of images."""

    weights: str = knob(
        "", "a run folder, a model/ folder or a checkpoint file", positional=True, path="input"
    )
    data: tuple[str, ...] = sources()
    out: str | None = knob(
        None, "the .npz file to write", metavar="FILE", needed=True, path="output"
    )
    arch: str | None = knob(None, "architecture, if the checkpoint does not name it")
    split: str | None = knob(None, "split to embed (auto: all)", choices=SPLITS)


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
        "a run whose input and augmented views are shown (auto: those of a new pretraining run)",
        metavar="RUN",
        path="input",
    )
    augment: str | None = knob(None, "data augmentation of the views shown", choices=AUGMENTS)
    image_size: int | None = knob(None, "size of the large crop in pixels", low=8)
    scan: str = knob(
        "sample",
        "decode files to find problems: all (full), a sample, or none (off); earlier findings are "
        "always shown",
        choices=("full", "sample", "off"),
        group="data",
    )
    range: str | None = knob(
        None,
        "intensity range of 16-bit and float images, from black to white, as in pretrain",
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
    seed: int = knob(0, "random seed of the samples and views", low=0, high=SEEDS)
    workers: int | None = knob(None, "decoding processes", low=1, group="machine")
    data_root: str = knob(
        "data", "folder for built-in datasets", group="data", metavar="DIR", path="output"
    )


@dataclass(frozen=True)
class InspectSettings(Call):
    """Shows what a checkpoint of any origin contains, and its architecture."""

    file: str = knob(
        "",
        "a checkpoint of any origin, a run folder or its model/ folder",
        positional=True,
        path="input",
    )


@dataclass(frozen=True)
class SummarySettings(Call):
    """Lists the layers of a network: output shapes, parameters, trainable or frozen."""

    arch: str = knob(
        "", "an architecture, a run folder or a checkpoint", positional=True, path="input"
    )
    input: str = knob("3x224x224", "input size: channels x height x width")
    classes: int | None = knob(
        None, "number of classes of a new head (auto: the network's own)", low=1
    )
    freeze: str | None = knob(
        None,
        "layers to freeze: none, all, norms, stage:N or regex:PATTERN",
        unset="as in the run; none",
    )
    stem: str = knob("imagenet", "stem (first layers)", choices=("imagenet", "small"))


@dataclass(frozen=True)
class ReportSettings(Call):
    """Writes the report of a run again, from its files."""

    run: str = knob("", "a run folder", positional=True, path="input")


@dataclass(frozen=True)
class CacheSettings(Call):
    """Lists the caches shared between runs, with path and size, or removes them."""

    clear: bool = knob(
        False,
        "remove the caches (only files that unfreeze wrote; not while a run uses them)",
        cli_only=True,
    )


@dataclass(frozen=True)
class DemoSettings(Call, Machine):
    """Runs pretraining and transfer learning on the handwritten digits of scikit-learn."""

    out: str | None = knob(
        None, "run folder (auto: a new one under runs/)", metavar="RUN", path="output"
    )
    seed: int = knob(0, "random seed of the pretraining", low=0, high=SEEDS)
    epochs: int | None = knob(None, "pretraining epochs", low=1)
    seeds: int = knob(5, "random draws of labels for each number of labels", low=1)
    dry_run: bool = knob(False, "print the plan; write nothing", cli_only=True)
