"""Settings of the commands about labels: `suggest`, `label` and `audit`."""

from dataclasses import dataclass

from unfreeze.config.commands import SPLITS, InferenceOptions
from unfreeze.config.field import setting
from unfreeze.config.shared import SEEDS, CallOptions, LabelOptions, data_setting


@dataclass(frozen=True)
class SuggestSettings(CallOptions, LabelOptions, InferenceOptions):
    """Suggests which images to label next, and keeps a random tenth apart as a test set."""

    run: str = setting(
        "", "a run folder, a model/ folder or a checkpoint file", positional=True, path="input"
    )
    data: tuple[str, ...] = data_setting()
    budget: int | None = setting(
        None, "number of images to label", low=1, metavar="N", needed=True, unset=""
    )
    out: str | None = setting(
        None,
        "the CSV file to write: path, label (empty, to fill in) and split",
        metavar="CSV",
        needed=True,
        path="output",
    )
    by: str = setting(
        "auto",
        "how to choose: typical images of each cluster, uncertain and diverse ones (needs a "
        "fine-tuned run), or random; auto: typical, and uncertain from 4 labels for each "
        "class on",
        choices=("auto", "typical", "uncertain", "random"),
    )
    arch: str | None = setting(None, "architecture, if the checkpoint does not name it")
    seed: int = setting(0, "random seed of the test set and the clusters", low=0, high=SEEDS)


@dataclass(frozen=True)
class LabelSettings(CallOptions, InferenceOptions):
    """Opens a page on this machine to label images by key; every label is on disk at once."""

    data: tuple[str, ...] = data_setting()
    out: str | None = setting(
        None,
        "the CSV file of the labels: path, label and split; a file of suggest is filled in, in its "
        "order, and one of label continued",
        metavar="CSV",
        needed=True,
        path="output",
    )
    classes: tuple[str, ...] = setting(
        (), "names of classes, for the keys 1 to 9; more can be added on the page", whole=True
    )
    ignore_labels: bool = setting(
        False, "label all images, also those with a label by their folder or in the list"
    )
    none_class: str | None = setting(
        None,
        "name of a class for images of none of the classes, for the key 0",
        metavar="NAME",
        unset="none",
    )
    run: str | None = setting(
        None,
        "a fine-tuned run: its classes are offered, its prediction is shown beside each image, and "
        "the most uncertain images come first; with --clusters any run or weights",
        unset="none",
        metavar="RUN",
        path="input",
    )
    clusters: int | None = setting(
        None,
        "clusters of images that look alike to --run; a key labels a whole group at once",
        low=2,
        metavar="N",
        unset="none",
    )
    arch: str | None = setting(None, "architecture, if the checkpoint does not name it")
    port: int = setting(0, "port on 127.0.0.1 (0: any free one)", low=0, high=65535)
    no_browser: bool = setting(False, "print the address only; open no browser", cli_only=True)


@dataclass(frozen=True)
class AuditSettings(CallOptions, LabelOptions, InferenceOptions):
    """Finds labels that look wrong, by classifiers not trained on the image they judge."""

    data: tuple[str, ...] = data_setting()
    out: str | None = setting(
        None,
        "folder for the list, the labels to edit and the page with thumbnails (new, empty or an "
        "earlier audit's)",
        cli_only=True,
        metavar="DIR",
        needed=True,
        path="output",
        basic=1,
    )
    arch: str | None = setting(
        None, "architecture, as in finetune (auto: that of the weights, or resnet50)", basic=2
    )
    weights: str = setting(
        "imagenet",
        "weights of the frozen backbone: none, imagenet, swav, NAME, URL, FILE or RUN",
        path="input",
        basic=3,
    )
    folds: int = setting(
        5,
        "parts of the data; each is judged by a classifier trained on the others",
        low=2,
        group="data",
        basic=4,
    )
    split: str | None = setting(
        None, "split to audit (auto: all labelled images)", choices=SPLITS, group="data"
    )
    group_by: str | None = setting(
        None,
        "keep images of one group in the same fold: a CSV column, or a regular expression whose "
        "first group names the group (default: the CSV's column `group`, if any)",
        group="data",
        unset="",
    )
    image_size: int | None = setting(None, "input image size in pixels", low=8)
    fit: str | None = setting(
        None,
        "how an image comes to the network's shape: its centre (crop), resized whole (squash), "
        "whole with bars (pad)",
        choices=("crop", "squash", "pad"),
        group="data",
        unset="crop, squash for long images",
    )
    seed: int = setting(0, "random seed of the folds", low=0, high=SEEDS)
