"""Settings of `pretrain`: those of SwAV have the names of the reference implementation."""

from dataclasses import dataclass

from unfreeze.config.field import setting
from unfreeze.config.shared import (
    CallOptions,
    ImageOptions,
    LabelOptions,
    MachineOptions,
    RunOptions,
    TimeBudgetOptions,
    data_setting,
)

METHODS = ("swav", "deepcluster-v2", "simclr", "distill", "auto")
OPTIMIZERS = ("larc", "adamw", "sgd")
AUGMENTS = ("photo", "small", "mono", "digits")
RECIPES = (
    "auto",
    "swav-100ep",
    "swav-200ep",
    "swav-400ep",
    "swav-800ep",
    "swav-200ep-bs256",
    "swav-400ep-bs256",
    "swav-400ep-2x224",
    "swav-w2-400ep",
    "swav-w4-400ep",
)


@dataclass(frozen=True)
class PretrainSettings(
    CallOptions, RunOptions, LabelOptions, ImageOptions, MachineOptions, TimeBudgetOptions
):
    """Self-supervised pretraining (SwAV) on unlabelled images.

    None: derived from the images, with a reason.
    """

    data: tuple[str, ...] = data_setting()
    arch: str | None = setting(
        None,
        "architecture: torchvision/NAME, timm/NAME or unfreeze/NAME (auto: by image size and "
        "device)",
        basic=2,
    )
    init: str = setting(
        "none",
        "initial weights: none, imagenet, swav, NAME, URL, FILE or RUN (and its SwAV head)",
        path="input",
        basic=3,
    )
    mean: tuple[float, ...] | None = setting(
        None, "normalisation: mean of each channel (auto: from the weights)", group="model"
    )
    std: tuple[float, ...] | None = setting(
        None,
        "normalisation: standard deviation of each channel (auto: from the weights)",
        group="model",
    )
    freeze_backbone_epochs: int | None = setting(
        None,
        "epochs at the start in which only the projection head and prototypes are trained",
        low=0,
        group="training",
    )
    bn_statistics: str | None = setting(
        None,
        "what batch norms of the backbone normalise by in training: statistics of the batch, or "
        "the running ones of --init, which then stay as they are (frozen)",
        choices=("batch", "frozen"),
        group="training",
    )
    layer_decay: float | None = setting(
        None,
        "layer-wise learning rate decay: factor from each stage to the stage before it (1: off)",
        low=0.01,
        high=1,
        group="training",
    )
    allow_partial: bool = setting(
        False,
        "accept weights that match less than 90 % of the backbone; the rest starts at random",
        group="model",
    )
    method: str = setting(
        "swav",
        "method; auto: simclr for images of up to 64 pixels, else swav; packages can add more",
        choices=METHODS,
        plugins="pretrain",
        basic=4,
    )
    teacher: str | None = setting(
        None,
        "teacher of --method distill: a trained network of torchvision or timm (timm/NAME), FILE, "
        "URL or RUN",
        group="model",
        unset="none",
        metavar="NAME|FILE|RUN",
        path="input",
    )
    teacher_arch: str | None = setting(
        None,
        "architecture of the teacher, if its file does not name it",
        group="model",
        unset="that of the file",
        metavar="NAME",
    )
    recipe: str = setting(
        "auto",
        "defaults of settings that are not given: derived from the images (auto), or a published "
        "ImageNet recipe",
        choices=RECIPES,
        group="training",
    )
    stem: str = setting(
        "auto",
        "stem (first layers): small keeps the resolution of small images",
        choices=("auto", "imagenet", "small"),
        group="model",
    )
    stem_init: str = setting(
        "auto",
        "initial filters of a 3x3 stem trained from scratch on colour images of up to 64 pixels: "
        "whitening filters of the images (auto), or random",
        choices=("auto", "random"),
        group="model",
    )
    image_size: int | None = setting(
        None, "large crops in pixels; small ones in proportion", low=8, basic=8
    )
    augment: str | None = setting(
        None, "data augmentation by type of image", choices=AUGMENTS, group="training"
    )
    epochs: int | None = setting(None, "epochs (0: write the untrained model)", low=0, basic=5)
    watch_every: int | None = setting(
        None,
        "epochs between feature evaluations, with k-NN accuracy if labels exist (0: never)",
        low=0,
        group="run",
    )
    keep: str | None = setting(
        None,
        "weights to write to model/: of the last epoch, or the best checkpoint "
        "(checkpoints/best.ckpt); with --init and labels the start is one of the candidates (auto: "
        "last; best with --init and labels)",
        choices=("last", "best"),
        group="run",
    )
    patience: int | None = setting(
        None,
        "early stopping with --init: feature evaluations in a row below the start (0: off)",
        low=0,
        group="training",
    )
    on_collapse: str = setting(
        "stop",
        "on representation collapse: save a checkpoint and stop, or ignore it",
        choices=("stop", "ignore"),
        group="run",
    )
    batch_size: int | None = setting(None, "images per step, over all processes", low=2, basic=6)
    accumulate: int = setting(
        1,
        "gradient accumulation steps per batch, to save memory; assignments use the full batch",
        low=1,
        group="training",
    )
    sync_bn: str = setting(
        "auto",
        "synchronised batch norm: over all processes (auto, all), within groups of neighbouring "
        "ranks, or none",
        choices=("auto", "all", "groups", "none"),
        group="machine",
    )
    syncbn_process_group_size: int = setting(
        8, "processes per group with --sync-bn groups", low=1, group="machine"
    )
    tune: str = setting(
        "auto",
        "measure the fastest threads, precision, memory layout and workers before the first step, "
        "within 1.5 s, and remember them for this machine and network for 30 days; again: measure "
        "anew; a resumed run keeps its own",
        choices=("auto", "again", "off"),
        group="machine",
    )
    views_on: str | None = setting(
        None,
        "where to compute crops: on the device (batched, from small images stored there) or on the "
        "host (image by image)",
        choices=("device", "host"),
        group="machine",
    )
    optimizer: str | None = setting(
        None, "optimizer; larc is the published one", choices=OPTIMIZERS, group="training"
    )

    nmb_crops: tuple[int, ...] | None = setting(
        None, "number of crops per image at each resolution", low=0, group="swav"
    )
    size_crops: tuple[int, ...] | None = setting(
        None, "crop size in pixels at each resolution", low=8, group="swav"
    )
    min_scale_crops: tuple[float, ...] | None = setting(
        None, "minimum fraction of the image area in a crop", low=0.001, high=1, group="swav"
    )
    max_scale_crops: tuple[float, ...] | None = setting(
        None, "maximum fraction of the image area in a crop", low=0.001, high=1, group="swav"
    )
    crops_for_assign: tuple[int, ...] = setting(
        (0, 1), "crops used to compute assignments", low=0, group="swav"
    )
    temperature: float = setting(0.1, "softmax temperature", low=1e-4, group="swav")
    epsilon: float | None = setting(
        None, "entropy regularisation of Sinkhorn-Knopp", low=1e-5, group="swav"
    )
    sinkhorn_iterations: int = setting(3, "iterations of Sinkhorn-Knopp", low=1, group="swav")
    feat_dim: int = setting(128, "dimension of the projected features", low=2, group="swav")
    hidden_mlp: int | None = setting(
        None, "hidden dimension of the projection head (0: linear)", low=0, group="swav"
    )
    nmb_prototypes: int | None = setting(None, "number of prototypes K", low=2, group="swav")
    queue_length: int | None = setting(
        None,
        "queue of past features for the assignments: length over all processes (0: off)",
        low=0,
        group="swav",
    )
    epoch_queue_starts: int | None = setting(
        None, "epoch from which the queue is filled, counted from 0", low=0, group="swav"
    )
    clusterings: int = setting(
        3,
        "k-means clusterings of deepcluster-v2, each with its own prototypes",
        low=1,
        group="swav",
    )
    kmeans_iterations: int = setting(10, "k-means iterations before an epoch", low=1, group="swav")
    base_lr: float | None = setting(
        None, "peak learning rate, after the warm-up", low=0, group="swav"
    )
    final_lr: float | None = setting(None, "final learning rate", low=0, group="swav")
    warmup_epochs: int | None = setting(
        None, "epochs of linear learning rate warm-up", low=0, group="swav"
    )
    start_warmup: float | None = setting(
        None, "initial learning rate of the warm-up", low=0, group="swav"
    )
    freeze_prototypes_niters: int | None = setting(
        None, "steps during which the prototypes are frozen", low=0, group="swav"
    )
    wd: float | None = setting(None, "weight decay", low=0, group="swav")
