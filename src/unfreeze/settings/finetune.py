"""The knobs of `finetune`."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob
from unfreeze.settings.shared import Budget, Call, ImageOptions, Machine, Run, Told, sources
from unfreeze.settings.training import Training


@dataclass(frozen=True)
class TuningSettings(Call, Run, Told, ImageOptions, Machine, Training):
    """One run of transfer learning."""

    data: tuple[str, ...] = sources()
    arch: str | None = knob(
        None, "network: torchvision/NAME, timm/NAME, unfreeze/NAME (auto: the run's, or resnet50)"
    )
    weights: str = knob(
        "imagenet", "start from: none, imagenet, swav, NAME, URL, FILE or RUN", path="input"
    )
    allow_partial: bool = knob(
        False, "accept weights that match less than 90 % of the backbone; the rest stays random"
    )
    freeze: str = knob(
        "none",
        "which layers to freeze: none, all (but the head), norms, stage:N (the stem and N "
        "stages) or "
        "regex:PATTERN",
    )
    unfreeze_at: str | None = knob(
        None,
        "layers to unfreeze from an epoch on (with -: to freeze again): "
        '"5:layer4,10:all,20:-layer1"',
        unset="never",
    )
    layer_decay: float = knob(
        1.0,
        "layer-wise learning rate decay: each stage's rate as a share of the next one's (1: off)",
        low=0.01,
        high=1,
    )
    head: str = knob(
        "replace", "the new head: replace, append (behind the old outputs) or mlp:WIDTH"
    )
    stem: str = knob(
        "auto",
        "first layers: small keeps the resolution of small images",
        choices=("auto", "imagenet", "small"),
    )
    image_size: int | None = knob(None, "side of the network's input in pixels", low=8)
    epochs: int = knob(30, "passes over the training images", low=1)
    batch_size: int | None = knob(None, "images per step, over all processes", low=1)
    lr: float | None = knob(None, "learning rate after the warm-up", low=0)
    find_lr: bool = knob(
        False,
        "learning rate finder: try rising rates and take the one at which the loss falls fastest",
    )
    head_lr: float | None = knob(
        None, "learning rate of the new head alone", low=0, unset="that of --lr"
    )
    optimizer: str = knob("sgd", "which optimizer", choices=("sgd", "adamw", "lars"))
    momentum: float = knob(0.9, "momentum of sgd and lars", low=0, high=0.9999)
    weight_decay: float | None = knob(None, "weight decay (auto: 0.0001, or the sweep's)", low=0)
    head_solver: str = knob(
        "auto",
        "how a linear head is fitted when everything else is frozen: auto solves it (logistic "
        "regression on features), sgd trains it",
        choices=("auto", "logistic", "sgd"),
    )
    sweep: str = knob(
        "auto",
        "with cached features for a linear head that is trained: try rates and weight decays that "
        "are not given at once, and take the best on validation",
        choices=("auto", "off"),
    )
    schedule: str = knob("cosine", "learning rate schedule", choices=("cosine", "constant", "step"))
    warmup_epochs: int = knob(0, "epochs of linear warm-up", low=0)
    augment: str = knob(
        "photo",
        "data augmentation: photo crops, flips and changes colours a little; mono is photo for "
        "grey "
        "images; digits rotates a little and never flips; randaugment and trivialaugment crop, "
        "flip "
        "and apply torchvision's policies",
        choices=("none", "photo", "mono", "digits", "randaugment", "trivialaugment"),
    )
    mean: tuple[float, ...] | None = knob(None, "channel means (auto: those of the weights)")
    std: tuple[float, ...] | None = knob(
        None, "channel standard deviations (auto: those of the weights)"
    )
    patience: int = knob(0, "early stopping: epochs without improvement (0: off)", low=0)
    checkpoint_every: int | None = knob(  # type: ignore[assignment]  # finer than the shared one
        None,
        "epochs between checkpoints (auto: 1; with features kept, each half minute; always at "
        "the end and at least every 5 minutes)",
        low=1,
        group="run",
    )
    cache: str = knob(
        "auto",
        "compute the output of the frozen layers once and train from it: features where only the "
        "head trains, activations where some layers train too",
        choices=("auto", "off", "features", "activations"),
    )
    cache_views: int | None = knob(
        None,
        "random views of each image in the cache (1: no augmentation)",
        low=1,
    )
    cache_budget: float = knob(
        16.0,
        "GiB of disk for all cached features; the least recently used are removed first",
        low=0,
    )
    select: str | None = knob(
        None,
        "validation metric that chooses the best epoch; balanced and macro-f1 weight all classes "
        "equally, last keeps the last epoch",
        choices=("accuracy", "balanced", "macro-f1", "loss", "last"),
        unset="accuracy; last below 50 validation images, which cannot choose",
    )
    val: float = knob(
        0.2,
        "share of train held out for validation where there is no val",
        low=0,
        high=0.9,
        group="data",
    )
    labels_per_class: int | None = knob(
        None, "use this many training images of each class", low=1, group="data", unset="all"
    )
    label_fraction: float | None = knob(
        None, "use this share of the training images", low=0, high=1, group="data", unset="all"
    )
    group_by: str | None = knob(
        None,
        "keep images of one group in the same split: a CSV column, or a regular expression whose "
        "first group is taken (without it: the CSV's column `group`, if any)",
        group="data",
        unset="",  # nothing to type: a column `group` holds whether it is named or not
    )


@dataclass(frozen=True)
class FinetuneSettings(TuningSettings, Budget):
    """Transfer learning: replaces the head, freezes layers, trains, keeps the best epoch."""

    folds: int = knob(
        0,
        "cross-validation before the run itself: N folds, each held out once (0: none)",
        low=0,
        group="data",
    )
    repeats: int = knob(
        1,
        "repeat cross-validation with N seeds; without --folds, N validation splits",
        low=1,
        group="data",
    )
