"""Settings of `compare`: those of `finetune`, with several initial weights and seeds."""

from dataclasses import dataclass

from unfreeze.config.field import setting
from unfreeze.config.finetune import FinetuneOptions
from unfreeze.config.pretrain import AUGMENTS
from unfreeze.config.shared import (
    SEEDS,
    CallOptions,
    LabelOptions,
    LabelSetOptions,
    MachineOptions,
    data_setting,
)

TFIDF = "tfidf"  # of --weights: the baseline of texts, no network


@dataclass(frozen=True)
class CompareSettings(FinetuneOptions):
    """Compares several initial weights on the same images, splits and budget."""

    weights: tuple[str, ...] = setting(  # type: ignore[assignment]  # several, where finetune has one
        ("none", "imagenet"),
        "two or more initial weights, as in finetune: none, imagenet, swav, NAME, URL, FILE, RUN; "
        "tfidf: word counts, for texts",
        path="input",
    )
    seeds: int = setting(
        3,
        "runs for each of the weights; the seed sets labels, validation split, new layers and data "
        "order",
        low=1,
    )
    rates: tuple[float, ...] | None = setting(
        None,
        "learning rates to try for each of the weights and seeds; the best on validation is "
        "evaluated (auto: --lr, else the usual one of the weights)",
        low=0,
    )
    labels_per_class: tuple[int, ...] | None = setting(  # type: ignore[assignment]  # several
        None,
        "use at most N training images of each class; several N: one table by number of labels",
        low=1,
        group="data",
        unset="all",
    )
    test: str | None = setting(
        None,
        "test set, evaluated once at the end of each run (auto: test of DATA, else val)",
        group="data",
        path="input",
    )


HUB = "hub"
FORMATS = ("torchvision", "timm", "safetensors", "torchscript", "onnx", "openvino", HUB)


@dataclass(frozen=True)
class ExportSettings(CallOptions):
    """Exports a run's model to another tool's format, verified by comparing outputs."""

    run: str = setting("", "a run folder, or its model/ folder", positional=True, path="input")
    to: str | None = setting(
        None,
        "export format; hub: upload to the Hugging Face Hub, for unfreeze and timm",
        choices=FORMATS,
        unset="",
        metavar="FORMAT",
        needed=True,
    )
    out: str | None = setting(
        None,
        "output folder (new or empty); with --to hub a copy of what is uploaded, if given",
        cli_only=True,
        metavar="DIR",
        needed=True,
        path="output",
    )
    with_preprocessing: bool = setting(
        False,
        "onnx and torchscript: resizing, normalisation and softmax inside the file, which takes an "
        "image uint8 [H, W, 3] of any size and gives the probabilities of predict",
    )
    int8: bool = setting(
        False,
        "onnx: also a file quantised to int8, calibrated on training images and compared with the "
        "float file: accuracy with interval, milliseconds; refused if accuracy falls below the "
        "interval",
    )
    data: str | None = setting(
        None,
        "images to compare outputs on: folder, archive, list or built-in name (auto: views of the "
        "run's training images; with --with-preprocessing or --int8 the run's images)",
        group="data",
        path="input",
    )
    data_root: str = setting(
        "data", "folder for built-in datasets", group="data", metavar="DIR", path="output"
    )
    repo: str | None = setting(
        None,
        "hub: the repository to upload to; created if it does not exist",
        unset="",
        metavar="USER/NAME",
    )
    private: bool = setting(False, "hub: create the repository as a private one")
    overwrite: bool = setting(
        False,
        "replace an earlier export in that folder; hub: also files in the repository, whose "
        "history is kept",
        group="run",
        cli_only=True,
    )


@dataclass(frozen=True)
class ScanSettings(CallOptions):
    """Decodes every image and lists broken, unusual, duplicate and mislabelled files."""

    data: tuple[str, ...] = data_setting()
    out: str | None = setting(
        None,
        "folder for problems.csv and scan.html (a page with thumbnails)",
        unset="none",
        metavar="DIR",
        path="output",
    )
    quarantine: str | None = setting(
        None,
        "move unusable files to this folder, with a manifest for --undo; an archive gets a list of "
        "exclusions instead",
        unset="none",
        metavar="DIR",
        path="output",
    )
    undo: str | None = setting(
        None,
        "restore the files that --quarantine moved to this folder",
        unset="nothing",
        metavar="DIR",
        path="input",
    )
    seconds: float = setting(30.0, "decoding timeout per file in seconds", low=0.1)
    workers: int | None = setting(
        None, "decoding processes (auto: one per core)", low=1, group="machine"
    )
    data_root: str = setting(
        "data", "folder for built-in datasets", group="data", metavar="DIR", path="output"
    )


SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class InferenceOptions(MachineOptions):
    """Batches and folders of the commands that use a model."""

    batch_size: int = setting(64, "images per batch", low=1)
    data_root: str = setting(
        "data", "folder for built-in datasets", group="data", metavar="DIR", path="output"
    )


@dataclass(frozen=True)
class EvaluateSettings(CallOptions, LabelOptions, LabelSetOptions, InferenceOptions):
    """Evaluates a model on labelled images: accuracy with interval, confusion matrix, mistakes."""

    run: str = setting("", "a run folder, or its model/ folder", positional=True, path="input")
    data: tuple[str, ...] = data_setting()
    masks: str | None = setting(
        None,
        "segmentation: folder or archive with the masks, under the names of the images",
        path="input",
        metavar="DIR",
        unset="beside the images",
    )
    split: str | None = setting(
        None,
        "split to evaluate (auto: test, else val, else what the run held out, else everything)",
        choices=SPLITS,
    )
    weights_of: str = setting(
        "both",
        "weights to evaluate: of the best epoch, of the last, or both",
        choices=("both", "best", "last"),
    )
    temperature: str = setting(
        "off",
        "temperature scaling of the probabilities, fitted on the validation images: fit shows the "
        "effect, keep also stores it with the model for predict",
        choices=("off", "fit", "keep"),
    )
    unknown: float = setting(
        0.95,
        "share of images whose set of labels should hold the true one, as in predict: also gives "
        "how many images the model answers, and how many of these it gets right",
        low=0.5,
        high=0.999,
        metavar="SHARE",
    )


@dataclass(frozen=True)
class PredictSettings(CallOptions, InferenceOptions):
    """Predicts the class of images."""

    run: str = setting("", "a run folder, or its model/ folder", positional=True, path="input")
    images: tuple[str, ...] = setting(
        (), "images, folders or archives", positional=True, whole=True, path="input"
    )
    out: str | None = setting(
        None,
        "write the predictions to this file instead of stdout; segmentation: the masks into this "
        "folder",
        metavar="FILE|DIR",
        path="output",
    )
    top: int = setting(1, "also give the K most likely classes of each image", low=1, metavar="K")
    probabilities: bool = setting(False, "also give the probability of every class")
    unknown: float | None = setting(
        None,
        "no label for images that look unknown or doubtful; also give the labels that hold the "
        "true one this often (0.95: 95 times in 100), and how odd the image is",
        low=0.5,
        high=0.999,
        metavar="SHARE",
    )
    format: str | None = setting(
        None,
        "format of --out; label-studio: pre-annotations for that labelling tool "
        "(auto: jsonl for a file named .jsonl, else csv)",
        choices=("csv", "jsonl", "label-studio"),
    )
    sort_into: str | None = setting(
        None,
        "copy each image into the folder of its predicted class in DIR (new or empty)",
        unset="",
        metavar="DIR",
        path="output",
    )
    explain: str | None = setting(
        None,
        "write each image beside a map of the parts that speak for its predicted class, into the "
        "folder of that class in DIR (new or empty)",
        unset="",
        metavar="DIR",
        path="output",
    )
    overlay: bool = setting(
        False, "segmentation: also write the images with their classes in colour"
    )


@dataclass(frozen=True)
class EmbedSettings(CallOptions, LabelOptions, InferenceOptions):
    """Computes the features of images."""

    weights: str = setting(
        "", "a run folder, a model/ folder or a checkpoint file", positional=True, path="input"
    )
    data: tuple[str, ...] = data_setting()
    out: str | None = setting(
        None, "the .npz file to write", metavar="FILE", needed=True, path="output"
    )
    arch: str | None = setting(None, "architecture, if the checkpoint does not name it")
    split: str | None = setting(None, "split to embed (auto: all)", choices=SPLITS)


@dataclass(frozen=True)
class ShowSettings(CallOptions, LabelOptions):
    """Draws a page about a dataset: samples, sizes, class counts, augmented views, problems."""

    data: tuple[str, ...] = data_setting()
    out: str | None = setting(
        None,
        "the HTML file to write (auto: NAME.html in this folder)",
        metavar="FILE",
        path="output",
    )
    run: str | None = setting(
        None,
        "a run whose input and augmented views are shown (auto: those of a new pretraining run)",
        metavar="RUN",
        path="input",
    )
    augment: str | None = setting(None, "data augmentation of the views shown", choices=AUGMENTS)
    image_size: int | None = setting(None, "size of the large crop in pixels", low=8)
    scan: str = setting(
        "sample",
        "decode files to find problems: all (full), a sample, or none (off); earlier findings are "
        "always shown",
        choices=("full", "sample", "off"),
        group="data",
    )
    range: str | None = setting(
        None,
        "intensity range of 16-bit and float images, from black to white, as in pretrain",
        choices=("auto", "full", "percentile"),
        group="data",
        unset="that of the run, else auto",
    )
    channels: tuple[int, ...] | None = setting(
        None,
        "channels of multi-channel files to use, counted from 0: one or three",
        low=0,
        group="data",
        unset="those of the run, else the first three",
    )
    samples: int = setting(6, "sample images of each class", low=1)
    seed: int = setting(0, "random seed of the samples and views", low=0, high=SEEDS)
    workers: int | None = setting(None, "decoding processes", low=1, group="machine")
    data_root: str = setting(
        "data", "folder for built-in datasets", group="data", metavar="DIR", path="output"
    )


@dataclass(frozen=True)
class InspectSettings(CallOptions):
    """Shows what a checkpoint of any origin contains, and its architecture."""

    file: str = setting(
        "",
        "a checkpoint of any origin, a run folder or its model/ folder",
        positional=True,
        path="input",
    )


@dataclass(frozen=True)
class SummarySettings(CallOptions):
    """Lists the layers of a network: output shapes, parameters, trainable or frozen."""

    arch: str = setting(
        "", "an architecture, a run folder or a checkpoint", positional=True, path="input"
    )
    input: str = setting("3x224x224", "input size: channels x height x width")
    classes: int | None = setting(
        None, "number of classes of a new head (auto: the network's own)", low=1
    )
    freeze: str | None = setting(
        None,
        "layers to freeze: none, all, norms, stage:N or regex:PATTERN",
        unset="as in the run; none",
    )
    stem: str = setting("imagenet", "stem (first layers)", choices=("imagenet", "small"))


@dataclass(frozen=True)
class ReportSettings(CallOptions):
    """Writes the report of a run again, from its files."""

    run: str = setting("", "a run folder", positional=True, path="input")


@dataclass(frozen=True)
class RunsSettings(CallOptions):
    """Lists the runs in a folder: task, network, data, result with interval, date."""

    folder: str = setting(
        "",
        "a folder that holds run folders, at any depth",
        positional=True,
        path="input",
        metavar="DIR",
    )


@dataclass(frozen=True)
class CacheSettings(CallOptions):
    """Lists the caches shared between runs, with path and size, or removes them."""

    clear: bool = setting(
        False,
        "remove the caches (only files that unfreeze wrote; not while a run uses them)",
        cli_only=True,
    )


@dataclass(frozen=True)
class DemoSettings(CallOptions, MachineOptions):
    """Runs pretraining and transfer learning on the handwritten digits of scikit-learn."""

    out: str | None = setting(
        None, "run folder (auto: a new one under runs/)", metavar="RUN", path="output"
    )
    seed: int = setting(0, "random seed of the pretraining", low=0, high=SEEDS)
    epochs: int | None = setting(None, "pretraining epochs", low=1)
    seeds: int = setting(5, "random draws of labels for each number of labels", low=1)
    dry_run: bool = setting(False, "print the plan; write nothing", cli_only=True)
