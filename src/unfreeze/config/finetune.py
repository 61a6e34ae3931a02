"""Settings of `finetune`."""

from dataclasses import dataclass

from unfreeze.config.field import setting
from unfreeze.config.shared import (
    CallOptions,
    ImageOptions,
    LabelOptions,
    LabelSetOptions,
    MachineOptions,
    RunOptions,
    TimeBudgetOptions,
    data_setting,
)

CLASSIFICATION, SEGMENTATION = "classification", "segmentation"  # built-in tasks
TEXT_CLASSIFICATION, MULTILABEL = "text-classification", "multilabel"


@dataclass(frozen=True)
class TrainingOptions:
    """Each is off by default."""

    label_smoothing: float = setting(
        0.0,
        "label smoothing: fraction of each label that is spread over all classes",
        low=0,
        high=0.9,
        group="training",
    )
    class_weights: str = setting(
        "none",
        "class weights in the loss: equal (none), inverse frequency (balanced), or its square root "
        "(sqrt); multilabel: of the images that have a label, by those that do not",
        choices=("none", "balanced", "sqrt"),
        group="training",
    )
    sampling: str = setting(
        "natural",
        "sampling of an epoch: each image once (natural), or the same number of every class "
        "(balanced; multilabel: of an image's rarest label)",
        choices=("natural", "balanced"),
        group="training",
    )
    mixup: float = setting(
        0.0,
        "mixup: alpha of the beta distribution, often 0.2 (0: off)",
        low=0,
        group="training",
    )
    cutmix: float = setting(
        0.0,
        "CutMix: alpha of the beta distribution, often 1 (0: off); with --mixup each batch uses "
        "one of the two",
        low=0,
        group="training",
    )
    clip_grad: float = setting(
        0.0, "gradient clipping: maximum norm (0: off)", low=0, group="training"
    )
    accumulate: int = setting(
        1,
        "gradient accumulation steps per batch, to save memory; batch norm uses each part alone",
        low=1,
        group="training",
    )
    ema: float = setting(
        0.0,
        "exponential moving average (EMA) of the weights: decay, often 0.99 to 0.9999 (0: off)",
        low=0,
        high=0.999999,
        group="training",
    )


@dataclass(frozen=True)
class FinetuneOptions(
    CallOptions,
    RunOptions,
    LabelOptions,
    LabelSetOptions,
    ImageOptions,
    MachineOptions,
    TrainingOptions,
):
    """Settings of one transfer learning run; `compare` shares them."""

    data: tuple[str, ...] = data_setting()
    arch: str | None = setting(
        None,
        "architecture: torchvision/NAME, timm/NAME, unfreeze/NAME, or for texts hf/NAME (auto: the "
        "run's, or resnet50)",
        basic=2,
    )
    weights: str = setting(
        "imagenet",
        "initial weights: none, imagenet, swav, (timm/)NAME, URL, FILE or RUN",
        path="input",
        basic=3,
    )
    allow_partial: bool = setting(
        False,
        "accept weights that match less than 90 % of the backbone; the rest starts at random",
        group="model",
    )
    freeze: str = setting(
        "none",
        "layers to freeze: none, all (but the head), norms, stage:N (stem and first N stages) or "
        "regex:PATTERN",
        basic=4,
    )
    unfreeze_at: str | None = setting(
        None,
        'layers to unfreeze at an epoch (with -: to freeze again): "5:layer4,10:all,20:-layer1"',
        unset="never",
        group="model",
    )
    lora: int = setting(
        0,
        "low-rank adapters (LoRA, arXiv 2106.09685) of this rank on the attention layers: they and "
        "the head are trained instead of all parameters, and merged into the weights at the end "
        "(0: off, often 8); needs 'unfreeze[lora]'",
        low=0,
        group="model",
        metavar="RANK",
    )
    layer_decay: float = setting(
        1.0,
        "layer-wise learning rate decay: factor from each stage to the stage before it (1: off)",
        low=0.01,
        high=1,
        group="training",
    )
    head: str = setting(
        "replace",
        "new head: replace, append (after the original outputs) or mlp:WIDTH",
        group="model",
    )
    stem: str = setting(
        "auto",
        "stem (first layers): small keeps the resolution of small images",
        choices=("auto", "imagenet", "small"),
        group="model",
    )
    image_size: int | None = setting(None, "input image size in pixels", low=8, basic=8)
    epochs: int | None = setting(
        None, "training epochs (auto: 30; 4 for texts)", low=1, basic=5, unset=""
    )
    batch_size: int | None = setting(None, "images per step, over all processes", low=1, basic=6)
    lr: float | None = setting(None, "peak learning rate, after the warm-up", low=0, basic=7)
    find_lr: bool = setting(
        False,
        "learning rate finder: run an LR range test and use the rate of the steepest descent",
        group="training",
    )
    head_lr: float | None = setting(
        None, "learning rate of the new head", low=0, unset="that of --lr", group="training"
    )
    optimizer: str = setting(
        "auto",
        "optimizer; auto is adamw, but sgd for a head alone and for pretrained image classifiers "
        "without batch normalisation",
        choices=("auto", "sgd", "adamw", "lars"),
        group="training",
    )
    momentum: float = setting(0.9, "momentum of SGD and LARS", low=0, high=0.9999, group="training")
    weight_decay: float | None = setting(
        None, "weight decay (auto: 0.0001, or the sweep's; 0.01 for texts)", low=0, group="training"
    )
    head_solver: str = setting(
        "auto",
        "solver of a linear head when everything else is frozen: auto solves it (logistic "
        "regression on the features), sgd trains it",
        choices=("auto", "logistic", "sgd"),
        group="training",
    )
    sweep: str = setting(
        "auto",
        "hyperparameter sweep when a linear head is trained on cached features: try learning rates "
        "and weight decays that are not given, and use the best on validation",
        choices=("auto", "off"),
        group="training",
    )
    schedule: str = setting(
        "cosine", "learning rate schedule", choices=("cosine", "constant", "step"), group="training"
    )
    warmup_epochs: int = setting(
        0, "epochs of linear learning rate warm-up", low=0, group="training"
    )
    augment: str = setting(
        "photo",
        "data augmentation: photo (crop, flip, slight colour jitter), mono (photo for grayscale "
        "images), digits (slight rotation, no flip), randaugment or trivialaugment (crop, flip and "
        "torchvision's policy)",
        choices=("none", "photo", "mono", "digits", "randaugment", "trivialaugment"),
        group="training",
    )
    mean: tuple[float, ...] | None = setting(
        None, "normalisation: mean of each channel (auto: from the weights)", group="model"
    )
    std: tuple[float, ...] | None = setting(
        None,
        "normalisation: standard deviation of each channel (auto: from the weights)",
        group="model",
    )
    patience: int = setting(
        0, "early stopping: epochs without improvement (0: off)", low=0, group="training"
    )
    checkpoint_every: int | None = setting(  # type: ignore[assignment]  # finer than the shared one
        None,
        "epochs between checkpoints (auto: 1, with the feature cache every 30 seconds; always at "
        "the end and at least every 5 minutes)",
        low=1,
        group="run",
    )
    cache: str = setting(
        "auto",
        "feature cache: compute the output of the frozen layers once and train on it (features: "
        "only the head trains; activations: other layers train too)",
        choices=("auto", "off", "features", "activations"),
        group="cache",
    )
    cache_views: int | None = setting(
        None,
        "random views of each image in the feature cache (1: no augmentation)",
        low=1,
        group="cache",
    )
    cache_budget: float = setting(
        16.0,
        "disk space of all feature caches in GiB; the least recently used are removed first",
        low=0,
        group="cache",
    )
    select: str | None = setting(
        None,
        "validation metric that selects the best checkpoint; balanced and macro-f1 weight all "
        "classes equally, metric is that of another task, last uses the last epoch",
        choices=("accuracy", "balanced", "macro-f1", "miou", "metric", "loss", "last"),
        unset="accuracy; last with fewer than 50 validation images",
        group="training",
    )
    val: float = setting(
        0.2,
        "fraction of train held out as validation set if the data has none",
        low=0,
        high=0.9,
        group="data",
    )
    text_column: str | None = setting(
        None,
        "column of the texts in a table",
        group=TEXT_CLASSIFICATION,
        metavar="NAME",
        unset="text, sentence, review, content, ...",
    )
    text_pair_column: str | None = setting(
        None,
        "column of the second text, if the samples are pairs of texts",
        group=TEXT_CLASSIFICATION,
        metavar="NAME",
        unset="text_pair, sentence2, hypothesis, if there is one",
    )
    fit: str | None = setting(
        None,
        "how an image comes to the network's shape: its centre (crop), resized whole (squash), "
        "whole with bars (pad); segmentation: squash, or tiles at its own size (tile)",
        choices=("crop", "squash", "pad", "tile"),
        group="data",
        unset="crop, squash for long images; segmentation: squash, tile from 1,024 pixels on",
    )
    max_length: int | None = setting(
        None,
        "largest number of tokens of a text; the rest is cut",
        low=4,
        group=TEXT_CLASSIFICATION,
        unset="what the encoder takes, at most 512",
    )
    labels_per_class: int | None = setting(
        None, "use at most N training images of each class", low=1, group="data", unset="all"
    )
    label_fraction: float | None = setting(
        None, "use this fraction of the training images", low=0, high=1, group="data", unset="all"
    )
    group_by: str | None = setting(
        None,
        "keep images of one group in the same split: a CSV column, or a regular expression whose "
        "first group names the group (default: the CSV's column `group`, if any)",
        group="data",
        unset="",  # no word for None: a column `group` is used in any case
    )
    task: str = setting(
        "auto",
        "what is learned: classification, multilabel (several labels for an image), segmentation, "
        "text-classification, or a task that another package registers; auto is segmentation if "
        "masks lie beside the images, text-classification for a table with a column of texts, and "
        "multilabel for a table with several labels for an image",
        choices=("auto", CLASSIFICATION, MULTILABEL, SEGMENTATION, TEXT_CLASSIFICATION),
        plugins="finetune",
        group="data",
    )
    masks: str | None = setting(
        None,
        "folder or archive with the masks, under the names of the images",
        path="input",
        group=SEGMENTATION,
        metavar="DIR",
        unset="beside the images",
    )
    mask_classes: str | None = setting(
        None,
        "CSV that names the classes of mask values or colours: id,name or r,g,b,name",
        path="input",
        group=SEGMENTATION,
        metavar="FILE",
        unset="classes.csv or class_dict.csv beside the images, else the values",
    )
    ignore_index: int | None = setting(
        None,
        "mask value that counts neither in the loss nor in metrics",
        low=0,
        group=SEGMENTATION,
        unset="255 and classes called void, unless 255 is a class",
    )
    loss: str | None = setting(
        None,
        "loss: bce (binary cross-entropy) or asymmetric for multilabel; ce (cross-entropy), dice, "
        "focal, jaccard, lovasz or tversky, or a sum such as ce+dice, for segmentation",
        group="training",
        unset="bce; segmentation: ce+dice",
    )


@dataclass(frozen=True)
class FinetuneSettings(FinetuneOptions, TimeBudgetOptions):
    """Transfer learning: replaces the head, freezes layers, keeps the best checkpoint."""

    folds: int = setting(
        0,
        "k-fold cross-validation before the run itself: number of folds (0: off)",
        low=0,
        group="data",
    )
    repeats: int = setting(
        1,
        "repeat cross-validation with N seeds; without --folds, N validation splits",
        low=1,
        group="data",
    )
