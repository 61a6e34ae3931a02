"""The knobs of `finetune`."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob
from unfreeze.settings.shared import Call, Machine, Pictures, Run, Told, sources
from unfreeze.settings.training import Training


@dataclass(frozen=True)
class TuningSettings(Call, Run, Told, Pictures, Machine, Training):
    """One run of transfer."""

    data: tuple[str, ...] = sources()
    arch: str | None = knob(
        None, "network: torchvision/NAME, timm/NAME, unfreeze/NAME (auto: the run's, or resnet50)"
    )
    weights: str = knob(
        "imagenet", "start from: none, imagenet, swav, NAME, URL, FILE or RUN", path="input"
    )
    allow_partial: bool = knob(
        False, "take weights that fit less than 90 % of the backbone; the rest stays random"
    )
    freeze: str = knob(
        "none", "what stands still: none, all, norms (batch norms), stage:N or regex:PATTERN"
    )
    unfreeze_at: str | None = knob(
        None,
        'parts that thaw, or with - freeze again, from an epoch on: "5:layer4,10:all,20:-layer1"',
        unset="never",
    )
    layer_decay: float = knob(
        1.0,
        "learning rate of each stage as a share of the next one's (1: the same)",
        low=0.01,
        high=1,
    )
    head: str = knob(
        "replace", "the new head: replace, append (behind the old outputs) or mlp:WIDTH"
    )
    stem: str = knob(
        "auto",
        "first layers: small keeps the resolution of small pictures",
        choices=("auto", "imagenet", "small"),
    )
    image_size: int | None = knob(None, "side of the network's input in pixels", low=8)
    epochs: int = knob(30, "passes over the training pictures", low=1)
    batch_size: int | None = knob(None, "pictures a step, over all processes", low=1)
    lr: float | None = knob(None, "learning rate after the warm-up", low=0)
    find_lr: bool = knob(
        False, "take the learning rate at which a test of rising rates sees the loss fall fastest"
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
    schedule: str = knob(
        "cosine", "how the learning rate falls", choices=("cosine", "constant", "step")
    )
    warmup_epochs: int = knob(0, "epochs of linear warm-up", low=0)
    augment: str = knob(
        "photo",
        "random views in training: photo crops, flips and changes colours a little, mono is photo "
        "for grey pictures, digits turns a little and never flips; randaugment and trivialaugment "
        "crop, flip and do what torchvision's policies of that name do",
        choices=("none", "photo", "mono", "digits", "randaugment", "trivialaugment"),
    )
    mean: tuple[float, ...] | None = knob(None, "channel means (auto: what the weights want)")
    std: tuple[float, ...] | None = knob(None, "channel deviations (auto: what the weights want)")
    patience: int = knob(0, "stop after this many epochs without a better one (0: off)", low=0)
    checkpoint_every: int | None = knob(  # type: ignore[assignment]  # finer than the shared one
        None,
        "epochs between checkpoints (auto: 1; with features kept, each half minute; always at "
        "the end and at least every 5 minutes)",
        low=1,
        group="run",
    )
    cache: str = knob(
        "auto",
        "compute what the frozen part makes of the pictures once and train from there: features "
        "before a head that alone learns, activations before whatever learns first",
        choices=("auto", "off", "features", "activations"),
    )
    cache_views: int | None = knob(
        None,
        "random views of each picture that are kept (1: no augmentation)",
        low=1,
    )
    cache_budget: float = knob(
        16.0,
        "GiB of disk for everything kept; what was not used for longest makes room",
        low=0,
    )
    select: str | None = knob(
        None,
        "what on the validation images picks the best epoch; balanced and macro-f1 count each "
        "class the same, last keeps the last epoch",
        choices=("accuracy", "balanced", "macro-f1", "loss", "last"),
        unset="accuracy; last below 50 validation images, which cannot choose",
    )
    val: float = knob(
        0.2, "share of train held out where there is no val", low=0, high=0.9, group="data"
    )
    labels_per_class: int | None = knob(
        None, "use this many training pictures of each class", low=1, group="data", unset="all"
    )
    label_fraction: float | None = knob(
        None, "use this share of the training pictures", low=0, high=1, group="data", unset="all"
    )
    group_by: str | None = knob(
        None,
        "keep together what shares this CSV column, or this regular expression's first group "
        "(without it: a CSV's column `group`, where there is one)",
        group="data",
        unset="",  # nothing to type: a column `group` holds whether it is named or not
    )


@dataclass(frozen=True)
class FinetuneSettings(TuningSettings):
    """Transfer: replace the head, freeze, train, keep the best."""

    folds: int = knob(
        0,
        "before the run itself, one for each of N parts of the training pictures, held out in "
        "turn: how sure is its accuracy (0: none)",
        low=0,
        group="data",
    )
    repeats: int = knob(
        1,
        "seeds for the folds; without --folds, runs of other seeds and other pictures",
        low=1,
        group="data",
    )
