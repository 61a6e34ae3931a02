"""The knobs of `pretrain`: names of SwAV values are the reference's, in kebab-case."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob
from unfreeze.settings.shared import Budget, Call, ImageOptions, Machine, Run, Told, sources

METHODS = ("swav", "deepcluster-v2")
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
class PretrainSettings(Call, Run, Told, ImageOptions, Machine, Budget):
    """Self-supervised pretraining (SwAV) on unlabelled images.

    None means: derived from the images, with a reason.
    """

    data: tuple[str, ...] = sources()
    arch: str | None = knob(
        None, "network: torchvision/NAME, timm/NAME or unfreeze/NAME (auto: by image and device)"
    )
    init: str = knob(
        "none",
        "start from: none, imagenet, swav, NAME, URL, FILE or RUN; a SwAV head too",
        path="input",
    )
    allow_partial: bool = knob(
        False, "accept weights that match less than 90 % of the backbone; the rest stays random"
    )
    method: str = knob(
        "swav", "where codes come from: Sinkhorn, or k-means before each epoch", choices=METHODS
    )
    recipe: str = knob(
        "auto",
        "where unset values come from: the images, or a published ImageNet run",
        choices=RECIPES,
    )
    stem: str = knob(
        "auto",
        "first layers: small keeps the resolution of small images",
        choices=("auto", "imagenet", "small"),
    )
    image_size: int | None = knob(
        None, "side of the large crop in pixels; the small one is in proportion", low=8
    )
    augment: str | None = knob(None, "augmentation by kind of image", choices=AUGMENTS)
    epochs: int | None = knob(None, "epochs (0: write the untrained model)", low=0)
    watch_every: int | None = knob(
        None,
        "epochs between feature evaluations, with k-NN where there are labels (0: never)",
        low=0,
        group="run",
    )
    keep: str = knob(
        "last",
        "which epoch's weights go into model/: the last, or the best (checkpoints/best.ckpt)",
        choices=("last", "best"),
        group="run",
    )
    on_collapse: str = knob(
        "stop",
        "on collapse (all features alike): save and stop, go back and change a setting, or "
        "ignore it",
        choices=("stop", "recover", "ignore"),
        group="run",
    )
    batch_size: int | None = knob(None, "images per step, over all processes", low=2)
    accumulate: int = knob(
        1,
        "gradient accumulation: parts of a batch, for less memory; codes are of the whole batch",
        low=1,
    )
    sync_bn: str = knob(
        "auto",
        "batch norm over processes: auto is all of them, groups is neighbours",
        choices=("auto", "all", "groups", "none"),
        group="machine",
    )
    syncbn_process_group_size: int = knob(
        8, "processes that share a batch norm with --sync-bn groups", low=1, group="machine"
    )
    tune: str = knob(
        "auto",
        "measure before the first step, within 5 s, the fastest threads, precision, layout and "
        "workers; a resumed run keeps its choice",
        choices=("auto", "off"),
        group="machine",
    )
    views_on: str | None = knob(
        None,
        "where crops are made: on the device, a batch at once, from small images held there, or on "
        "the host one by one",
        choices=("device", "host"),
        group="machine",
    )
    optimizer: str | None = knob(None, "optimizer; larc is the published one", choices=OPTIMIZERS)

    nmb_crops: tuple[int, ...] | None = knob(
        None, "crops per image at each resolution", low=0, group="swav"
    )
    size_crops: tuple[int, ...] | None = knob(
        None, "side of the crops at each resolution, pixels", low=8, group="swav"
    )
    min_scale_crops: tuple[float, ...] | None = knob(
        None, "smallest share of the image in a crop", low=0.001, high=1, group="swav"
    )
    max_scale_crops: tuple[float, ...] | None = knob(
        None, "largest share of the image in a crop", low=0.001, high=1, group="swav"
    )
    crops_for_assign: tuple[int, ...] = knob(
        (0, 1), "crops whose codes the others predict", low=0, group="swav"
    )
    temperature: float = knob(0.1, "temperature of the prediction", low=1e-4, group="swav")
    epsilon: float | None = knob(None, "entropy of the Sinkhorn codes", low=1e-5, group="swav")
    sinkhorn_iterations: int = knob(3, "rounds of Sinkhorn", low=1, group="swav")
    feat_dim: int = knob(128, "width of the projected feature", low=2, group="swav")
    hidden_mlp: int | None = knob(
        None, "hidden width of the projection head (0: one layer)", low=0, group="swav"
    )
    nmb_prototypes: int | None = knob(None, "number of prototypes K", low=2, group="swav")
    queue_length: int | None = knob(
        None,
        "queue of past features for the codes, over all processes (0: off)",
        low=0,
        group="swav",
    )
    epoch_queue_starts: int | None = knob(
        None, "epoch from which the queue fills, counted from 0", low=0, group="swav"
    )
    queue_start: str = knob(
        "epoch",
        "epoch: as published; auto: earlier if features settle, dropped if the loss climbs",
        choices=("epoch", "auto"),
        group="swav",
    )
    clusterings: int = knob(
        3, "k-means of deepcluster-v2, each with prototypes of its own", low=1, group="swav"
    )
    kmeans_iterations: int = knob(10, "rounds of k-means before an epoch", low=1, group="swav")
    base_lr: float | None = knob(None, "learning rate after the warm-up", low=0, group="swav")
    final_lr: float | None = knob(None, "learning rate at the end", low=0, group="swav")
    warmup_epochs: int | None = knob(None, "epochs of linear warm-up", low=0, group="swav")
    start_warmup: float | None = knob(
        None, "learning rate at the first step of a warm-up", low=0, group="swav"
    )
    freeze_prototypes_niters: int | None = knob(
        None, "steps for which the prototypes are frozen", low=0, group="swav"
    )
    wd: float | None = knob(None, "weight decay", low=0, group="swav")
