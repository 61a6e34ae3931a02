# Made by `make docs` from the settings; every keyword of every verb with its type and default.
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Literal, overload

from numpy import ndarray
from PIL.Image import Image

from unfreeze import swav as swav
from unfreeze.api.cache import CacheResult as CacheResult
from unfreeze.api.compare import ComparePlan as ComparePlan
from unfreeze.api.compare import Comparison as Comparison
from unfreeze.api.demo import DemoResult as DemoResult
from unfreeze.api.embed import EmbedResult as EmbedResult
from unfreeze.api.evaluate import Evaluation as Evaluation
from unfreeze.api.export import ExportResult as ExportResult
from unfreeze.api.finetune import FinetunePlan as FinetunePlan
from unfreeze.api.finetune import FinetuneResult as FinetuneResult
from unfreeze.api.inspect import inspect as inspect
from unfreeze.api.load import load as load
from unfreeze.api.predict import Predictions as Predictions
from unfreeze.api.pretrain import PretrainPlan as PretrainPlan
from unfreeze.api.pretrain import PretrainResult as PretrainResult
from unfreeze.api.report import Report as Report
from unfreeze.api.scan import ScanResult as ScanResult
from unfreeze.api.show import ShowResult as ShowResult
from unfreeze.api.summary import Summary as Summary
from unfreeze.errors import DataError as DataError
from unfreeze.errors import DivergedError as DivergedError
from unfreeze.errors import Interrupted as Interrupted
from unfreeze.errors import ResourceError as ResourceError
from unfreeze.errors import UnfreezeError as UnfreezeError
from unfreeze.errors import UsageError as UsageError
from unfreeze.errors import WeightsError as WeightsError

__version__: str
__all__ = [
    "DataError",
    "DivergedError",
    "Interrupted",
    "ResourceError",
    "UnfreezeError",
    "UsageError",
    "WeightsError",
    "cache",
    "compare",
    "demo",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "load",
    "predict",
    "pretrain",
    "report",
    "scan",
    "show",
    "summary",
    "swav",
]

def cache(
    *,
    config: str | PathLike[str] | None = None,
    clear: bool = False,
    progress: bool | None = None,
) -> CacheResult:
    """Where caches lie and how large each is; with `clear=True` they are removed.

    Parameters:
        config: settings from a TOML file.
        clear: remove what is cached (only what unfreeze wrote; not while a run uses it).
        progress: show progress (None: in a notebook or a terminal).
    """
@overload
def compare(
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    weights: Sequence[str | PathLike[str]] | None = None,
    *,
    label_smoothing: float = 0.0,
    class_weights: Literal["none", "balanced", "sqrt"] = "none",
    sampling: Literal["natural", "balanced"] = "natural",
    mixup: float = 0.0,
    cutmix: float = 0.0,
    clip_grad: float = 0.0,
    accumulate: int = 1,
    ema: float = 0.0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    data_root: str | PathLike[str] = "data",
    range: str | None = None,
    channels: int | Sequence[int] | None = None,
    scan: Literal["full", "sample", "off"] = "full",
    store: Literal["auto", "memory", "disk", "off"] = "auto",
    store_budget: float = 16.0,
    limit: int | None = None,
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    split_from: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool | Literal["auto"] | None = None,
    overwrite: bool = False,
    dry_run: Literal[False] = False,
    seed: int = 0,
    checkpoint_every: int | None = None,
    keep_every: int | None = None,
    time_limit: str | None = None,
    logger: Literal["none", "tensorboard", "wandb", "mlflow"] | Sequence[Literal["none", "tensorboard", "wandb", "mlflow"]] = ("none",),
    config: str | PathLike[str] | None = None,
    arch: str | None = None,
    allow_partial: bool = False,
    freeze: str = "none",
    unfreeze_at: str | None = None,
    layer_decay: float = 1.0,
    head: str = "replace",
    stem: Literal["auto", "imagenet", "small"] = "auto",
    image_size: int | None = None,
    epochs: int = 30,
    batch_size: int | None = None,
    lr: float | None = None,
    find_lr: bool = False,
    head_lr: float | None = None,
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd",
    momentum: float = 0.9,
    weight_decay: float | None = None,
    head_solver: Literal["auto", "logistic", "sgd"] = "auto",
    sweep: Literal["auto", "off"] = "auto",
    schedule: Literal["cosine", "constant", "step"] = "cosine",
    warmup_epochs: int = 0,
    augment: Literal["none", "photo", "mono", "digits", "randaugment", "trivialaugment"] = "photo",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    patience: int = 0,
    cache: Literal["auto", "off", "features", "activations"] = "auto",
    cache_views: int | None = None,
    cache_budget: float = 16.0,
    select: Literal["accuracy", "balanced", "macro-f1", "loss", "last"] | None = None,
    val: float = 0.2,
    labels_per_class: int | None = None,
    label_fraction: float | None = None,
    group_by: str | None = None,
    seeds: int = 3,
    rates: float | Sequence[float] | None = None,
    test: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Train from each of `weights` with the same images and seeds, and say what paid.

    `weights`: two or more starts; None: none and imagenet, or those of the run that is resumed.
    The test images are read once a run, at its end; finished runs of an interrupted comparison are
    not done again (`resume`).

    Parameters:
        data: one or several: folder, archive, CSV or Parquet, shards, address or built-in name.
        label_smoothing: label smoothing: share of each label spread over all classes.
        class_weights: weight of each class in the loss: equal, by inverse frequency (balanced), or by its square root (sqrt). One of: 'none', 'balanced', 'sqrt'.
        sampling: images of an epoch: each once (natural), or the same number of every class (balanced). One of: 'natural', 'balanced'.
        mixup: mixup: alpha of its beta distribution, often 0.2 (0: off).
        cutmix: CutMix: alpha of its beta distribution, often 1 (0: off); with mixup each batch takes one of the two.
        clip_grad: gradient clipping: the largest norm (0: off).
        accumulate: gradient accumulation: parts of a batch, for less memory; batch norm sees each part alone.
        ema: exponential moving average of the weights with this decay, often 0.99 to 0.9999 (0: off).
        device: where to compute. One of: 'auto', 'cpu', 'cuda', 'mps'.
        precision: numerical precision: auto takes bf16 where the hardware has it. One of: 'auto', 'fp32', 'bf16', 'fp16'.
        workers: processes that load images (0: the main process).
        data_root: folder for built-in data sets.
        range: which values are black and white in 16-bit and float images: one range for the whole dataset where its values allow it (auto), each image by its own depth or values (image), by the type (full), 0.5 % to 99.5 % of each image (percentile), or LOW:HIGH. One of: 'auto', 'image', 'full', 'percentile', LOW:HIGH.
        channels: channels of the files that are used, counted from 0: three, or one (of many, as in TIFF files of cameras and satellites).
        scan: decode all files before training to find broken ones, a sample, or none. One of: 'full', 'sample', 'off'.
        store: where decoded images are held: memory, disk (a memory map that processes share and later runs find again) or off; auto takes memory for one process up to 1 GiB, else disk. One of: 'auto', 'memory', 'disk', 'off'.
        store_budget: GiB that decoded images may take, in memory or on the disk.
        limit: use at most N training images.
        labels: labels from elsewhere: a CSV or Parquet file (path, label, maybe split, group) joined by name, another column of the list itself, or a regular expression whose first group in a image's path is its label.
        label_column: column of the labels, in the list that labels names or in a list that is DATA itself.
        split_from: splits from elsewhere: a run, or a CSV like its split.csv; images that it does not name are not used.
        out: folder of the run (new or empty).
        resume: resume from the run's last checkpoint; without one, start from the beginning. One of: 'auto', True.
        overwrite: delete the previous run in that folder first.
        dry_run: print the plan with its reasons and write nothing.
        seed: seed of every random choice.
        checkpoint_every: epochs between checkpoints (None: 1; with features kept, each half minute; always at the end and at least every 5 minutes).
        keep_every: also keep a separate checkpoint every N epochs, with its metrics in its name.
        time_limit: save and stop (exit code 130) before this much time has passed: 30m, 2h, 1-12:00:00, or minutes; with resume='auto' the same command starts and resumes.
        logger: experiment trackers that also get the metrics, one or several, each an extra (unfreeze[wandb]); a tracker that fails does not stop the run. One of: 'none', 'tensorboard', 'wandb', 'mlflow'.
        config: settings from a TOML file.
        arch: network: torchvision/NAME, timm/NAME, unfreeze/NAME (None: the run's, or resnet50).
        weights: two or more starts, each as finetune takes it: none, imagenet, swav, NAME, URL, FILE, RUN.
        allow_partial: accept weights that match less than 90 % of the backbone; the rest stays random.
        freeze: which layers to freeze: none, all (but the head), norms, stage:N (the stem and N stages) or regex:PATTERN.
        unfreeze_at: layers to unfreeze from an epoch on (with -: to freeze again): "5:layer4,10:all,20:-layer1".
        layer_decay: layer-wise learning rate decay: each stage's rate as a share of the next one's (1: off).
        head: the new head: replace, append (behind the old outputs) or mlp:WIDTH.
        stem: first layers: small keeps the resolution of small images. One of: 'auto', 'imagenet', 'small'.
        image_size: side of the network's input in pixels.
        epochs: passes over the training images.
        batch_size: images per step, over all processes.
        lr: learning rate after the warm-up.
        find_lr: learning rate finder: try rising rates and take the one at which the loss falls fastest.
        head_lr: learning rate of the new head alone.
        optimizer: which optimizer. One of: 'sgd', 'adamw', 'lars'.
        momentum: momentum of sgd and lars.
        weight_decay: weight decay (None: 0.0001, or the sweep's).
        head_solver: how a linear head is fitted when everything else is frozen: auto solves it (logistic regression on features), sgd trains it. One of: 'auto', 'logistic', 'sgd'.
        sweep: with cached features for a linear head that is trained: try rates and weight decays that are not given at once, and take the best on validation. One of: 'auto', 'off'.
        schedule: learning rate schedule. One of: 'cosine', 'constant', 'step'.
        warmup_epochs: epochs of linear warm-up.
        augment: data augmentation: photo crops, flips and changes colours a little; mono is photo for grey images; digits rotates a little and never flips; randaugment and trivialaugment crop, flip and apply torchvision's policies. One of: 'none', 'photo', 'mono', 'digits', 'randaugment', 'trivialaugment'.
        mean: channel means (None: those of the weights).
        std: channel standard deviations (None: those of the weights).
        patience: early stopping: epochs without improvement (0: off).
        cache: compute the output of the frozen layers once and train from it: features where only the head trains, activations where some layers train too. One of: 'auto', 'off', 'features', 'activations'.
        cache_views: random views of each image in the cache (1: no augmentation).
        cache_budget: GiB of disk for all cached features; the least recently used are removed first.
        select: validation metric that chooses the best epoch; balanced and macro-f1 weight all classes equally, last keeps the last epoch. One of: 'accuracy', 'balanced', 'macro-f1', 'loss', 'last'.
        val: share of train held out for validation where there is no val.
        labels_per_class: use this many training images of each class.
        label_fraction: use this share of the training images.
        group_by: keep images of one group in the same split: a CSV column, or a regular expression whose first group is taken (without it: the CSV's column `group`, if any).
        seeds: runs from each start; the seed draws labels, validation split, new layers and order.
        rates: learning rates to try from each start and seed; the best on validation is evaluated (None: lr, else each start's usual one).
        test: other images to evaluate on, once at the end of each run (None: test of DATA, else val).
        progress: show progress (None: in a notebook or a terminal).
    """
@overload
def compare(
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    weights: Sequence[str | PathLike[str]] | None = None,
    *,
    label_smoothing: float = 0.0,
    class_weights: Literal["none", "balanced", "sqrt"] = "none",
    sampling: Literal["natural", "balanced"] = "natural",
    mixup: float = 0.0,
    cutmix: float = 0.0,
    clip_grad: float = 0.0,
    accumulate: int = 1,
    ema: float = 0.0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    data_root: str | PathLike[str] = "data",
    range: str | None = None,
    channels: int | Sequence[int] | None = None,
    scan: Literal["full", "sample", "off"] = "full",
    store: Literal["auto", "memory", "disk", "off"] = "auto",
    store_budget: float = 16.0,
    limit: int | None = None,
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    split_from: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool | Literal["auto"] | None = None,
    overwrite: bool = False,
    dry_run: Literal[True],
    seed: int = 0,
    checkpoint_every: int | None = None,
    keep_every: int | None = None,
    time_limit: str | None = None,
    logger: Literal["none", "tensorboard", "wandb", "mlflow"] | Sequence[Literal["none", "tensorboard", "wandb", "mlflow"]] = ("none",),
    config: str | PathLike[str] | None = None,
    arch: str | None = None,
    allow_partial: bool = False,
    freeze: str = "none",
    unfreeze_at: str | None = None,
    layer_decay: float = 1.0,
    head: str = "replace",
    stem: Literal["auto", "imagenet", "small"] = "auto",
    image_size: int | None = None,
    epochs: int = 30,
    batch_size: int | None = None,
    lr: float | None = None,
    find_lr: bool = False,
    head_lr: float | None = None,
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd",
    momentum: float = 0.9,
    weight_decay: float | None = None,
    head_solver: Literal["auto", "logistic", "sgd"] = "auto",
    sweep: Literal["auto", "off"] = "auto",
    schedule: Literal["cosine", "constant", "step"] = "cosine",
    warmup_epochs: int = 0,
    augment: Literal["none", "photo", "mono", "digits", "randaugment", "trivialaugment"] = "photo",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    patience: int = 0,
    cache: Literal["auto", "off", "features", "activations"] = "auto",
    cache_views: int | None = None,
    cache_budget: float = 16.0,
    select: Literal["accuracy", "balanced", "macro-f1", "loss", "last"] | None = None,
    val: float = 0.2,
    labels_per_class: int | None = None,
    label_fraction: float | None = None,
    group_by: str | None = None,
    seeds: int = 3,
    rates: float | Sequence[float] | None = None,
    test: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> ComparePlan: ...
@overload
def compare(
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    weights: Sequence[str | PathLike[str]] | None = None,
    *,
    label_smoothing: float = 0.0,
    class_weights: Literal["none", "balanced", "sqrt"] = "none",
    sampling: Literal["natural", "balanced"] = "natural",
    mixup: float = 0.0,
    cutmix: float = 0.0,
    clip_grad: float = 0.0,
    accumulate: int = 1,
    ema: float = 0.0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    data_root: str | PathLike[str] = "data",
    range: str | None = None,
    channels: int | Sequence[int] | None = None,
    scan: Literal["full", "sample", "off"] = "full",
    store: Literal["auto", "memory", "disk", "off"] = "auto",
    store_budget: float = 16.0,
    limit: int | None = None,
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    split_from: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool | Literal["auto"] | None = None,
    overwrite: bool = False,
    dry_run: bool,
    seed: int = 0,
    checkpoint_every: int | None = None,
    keep_every: int | None = None,
    time_limit: str | None = None,
    logger: Literal["none", "tensorboard", "wandb", "mlflow"] | Sequence[Literal["none", "tensorboard", "wandb", "mlflow"]] = ("none",),
    config: str | PathLike[str] | None = None,
    arch: str | None = None,
    allow_partial: bool = False,
    freeze: str = "none",
    unfreeze_at: str | None = None,
    layer_decay: float = 1.0,
    head: str = "replace",
    stem: Literal["auto", "imagenet", "small"] = "auto",
    image_size: int | None = None,
    epochs: int = 30,
    batch_size: int | None = None,
    lr: float | None = None,
    find_lr: bool = False,
    head_lr: float | None = None,
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd",
    momentum: float = 0.9,
    weight_decay: float | None = None,
    head_solver: Literal["auto", "logistic", "sgd"] = "auto",
    sweep: Literal["auto", "off"] = "auto",
    schedule: Literal["cosine", "constant", "step"] = "cosine",
    warmup_epochs: int = 0,
    augment: Literal["none", "photo", "mono", "digits", "randaugment", "trivialaugment"] = "photo",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    patience: int = 0,
    cache: Literal["auto", "off", "features", "activations"] = "auto",
    cache_views: int | None = None,
    cache_budget: float = 16.0,
    select: Literal["accuracy", "balanced", "macro-f1", "loss", "last"] | None = None,
    val: float = 0.2,
    labels_per_class: int | None = None,
    label_fraction: float | None = None,
    group_by: str | None = None,
    seeds: int = 3,
    rates: float | Sequence[float] | None = None,
    test: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> Comparison | ComparePlan: ...
@overload
def demo(
    out: str | None = None,
    *,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    config: str | PathLike[str] | None = None,
    seed: int = 0,
    epochs: int | None = None,
    seeds: int = 5,
    dry_run: Literal[False] = False,
    progress: bool | None = None,
) -> DemoResult:
    """Run the demonstration into `out` (a new folder under `runs/` without it).

    Parameters:
        device: where to compute. One of: 'auto', 'cpu', 'cuda', 'mps'.
        precision: numerical precision: auto takes bf16 where the hardware has it. One of: 'auto', 'fp32', 'bf16', 'fp16'.
        workers: processes that load images (0: the main process).
        config: settings from a TOML file.
        out: folder of the run (None: a new one under runs/).
        seed: seed of the pretraining.
        epochs: epochs of pretraining.
        seeds: label draws for each number of labels.
        dry_run: print the plan; touch no file.
        progress: show progress (None: in a notebook or a terminal).
    """
@overload
def demo(
    out: str | None = None,
    *,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    config: str | PathLike[str] | None = None,
    seed: int = 0,
    epochs: int | None = None,
    seeds: int = 5,
    dry_run: Literal[True],
    progress: bool | None = None,
) -> PretrainPlan: ...
@overload
def demo(
    out: str | None = None,
    *,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    config: str | PathLike[str] | None = None,
    seed: int = 0,
    epochs: int | None = None,
    seeds: int = 5,
    dry_run: bool,
    progress: bool | None = None,
) -> DemoResult | PretrainPlan: ...
def embed(
    weights: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    batch_size: int = 64,
    data_root: str | PathLike[str] = "data",
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    split_from: str | PathLike[str] | None = None,
    config: str | PathLike[str] | None = None,
    arch: str | None = None,
    split: Literal["train", "val", "test", "all"] | None = None,
    progress: bool | None = None,
) -> EmbedResult:
    """Write features of the images of `data` to the .npz file `out`.

    It holds `features` float32 [N, D] (what the network's head is fed), `paths`, `labels` (places
    in `classes`, -1 where there is none) and `classes`.

    Parameters:
        weights: a run's folder, a model/ folder or a checkpoint file.
        data: one or several: folder, archive, CSV or Parquet, shards, address or built-in name.
        device: where to compute. One of: 'auto', 'cpu', 'cuda', 'mps'.
        precision: numerical precision: auto takes bf16 where the hardware has it. One of: 'auto', 'fp32', 'bf16', 'fp16'.
        workers: processes that load images (0: the main process).
        batch_size: images per batch.
        data_root: folder for built-in data sets.
        labels: labels from elsewhere: a CSV or Parquet file (path, label, maybe split, group) joined by name, another column of the list itself, or a regular expression whose first group in a image's path is its label.
        label_column: column of the labels, in the list that labels names or in a list that is DATA itself.
        split_from: splits from elsewhere: a run, or a CSV like its split.csv; images that it does not name are not used.
        config: settings from a TOML file.
        out: the .npz file to write.
        arch: network, where the weights do not say it.
        split: which images (None: all). One of: 'train', 'val', 'test', 'all'.
        progress: show progress (None: in a notebook or a terminal).
    """
def evaluate(
    run: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    batch_size: int = 64,
    data_root: str | PathLike[str] = "data",
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    split_from: str | PathLike[str] | None = None,
    config: str | PathLike[str] | None = None,
    split: Literal["train", "val", "test", "all"] | None = None,
    weights_of: Literal["both", "best", "last"] = "both",
    temperature: Literal["off", "fit", "keep"] = "off",
    progress: bool | None = None,
) -> Evaluation:
    """Scores of a run's model on `data`: its test, else val, else the rows held out, else all.

    DataError for a class the model does not know.

    Parameters:
        run: a run's folder, or its model/ folder.
        data: one or several: folder, archive, CSV or Parquet, shards, address or built-in name.
        device: where to compute. One of: 'auto', 'cpu', 'cuda', 'mps'.
        precision: numerical precision: auto takes bf16 where the hardware has it. One of: 'auto', 'fp32', 'bf16', 'fp16'.
        workers: processes that load images (0: the main process).
        batch_size: images per batch.
        data_root: folder for built-in data sets.
        labels: labels from elsewhere: a CSV or Parquet file (path, label, maybe split, group) joined by name, another column of the list itself, or a regular expression whose first group in a image's path is its label.
        label_column: column of the labels, in the list that labels names or in a list that is DATA itself.
        split_from: splits from elsewhere: a run, or a CSV like its split.csv; images that it does not name are not used.
        config: settings from a TOML file.
        split: split to evaluate (None: test, else val, else what the run held out, else all). One of: 'train', 'val', 'test', 'all'.
        weights_of: which weights: of the best epoch, of the last, or both. One of: 'both', 'best', 'last'.
        temperature: calibrate probabilities with a temperature fitted on the validation images: fit shows the effect, keep also stores it with the model for predict. One of: 'off', 'fit', 'keep'.
        progress: show progress (None: in a notebook or a terminal).
    """
def export(
    run: str | PathLike[str],
    to: str,
    out: str | PathLike[str],
    *,
    config: str | PathLike[str] | None = None,
    data: str | PathLike[str] | None = None,
    data_root: str | PathLike[str] = "data",
    overwrite: bool = False,
    progress: bool | None = None,
) -> ExportResult:
    """Write the model of `run` for `to` (torchvision, timm, safetensors, torchscript, onnx).

    UsageError where the format has no such network; WeightsError
    where the outputs differ, and then nothing is left behind.

    Parameters:
        run: a run's folder, or its model/ folder.
        config: settings from a TOML file.
        to: which format. One of: 'torchvision', 'timm', 'safetensors', 'torchscript', 'onnx'.
        out: folder to write (new or empty).
        data: images to compare outputs on: folder, archive, list or built-in name (None: the run's own views).
        data_root: folder for built-in data sets.
        overwrite: replace what an earlier export wrote there.
        progress: show progress (None: in a notebook or a terminal).
    """
@overload
def finetune(
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    time_budget: str | None = None,
    label_smoothing: float = 0.0,
    class_weights: Literal["none", "balanced", "sqrt"] = "none",
    sampling: Literal["natural", "balanced"] = "natural",
    mixup: float = 0.0,
    cutmix: float = 0.0,
    clip_grad: float = 0.0,
    accumulate: int = 1,
    ema: float = 0.0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    data_root: str | PathLike[str] = "data",
    range: str | None = None,
    channels: int | Sequence[int] | None = None,
    scan: Literal["full", "sample", "off"] = "full",
    store: Literal["auto", "memory", "disk", "off"] = "auto",
    store_budget: float = 16.0,
    limit: int | None = None,
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    split_from: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool | Literal["auto"] | None = None,
    overwrite: bool = False,
    dry_run: Literal[False] = False,
    seed: int = 0,
    checkpoint_every: int | None = None,
    keep_every: int | None = None,
    time_limit: str | None = None,
    logger: Literal["none", "tensorboard", "wandb", "mlflow"] | Sequence[Literal["none", "tensorboard", "wandb", "mlflow"]] = ("none",),
    config: str | PathLike[str] | None = None,
    arch: str | None = None,
    weights: str | PathLike[str] = "imagenet",
    allow_partial: bool = False,
    freeze: str = "none",
    unfreeze_at: str | None = None,
    layer_decay: float = 1.0,
    head: str = "replace",
    stem: Literal["auto", "imagenet", "small"] = "auto",
    image_size: int | None = None,
    epochs: int = 30,
    batch_size: int | None = None,
    lr: float | None = None,
    find_lr: bool = False,
    head_lr: float | None = None,
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd",
    momentum: float = 0.9,
    weight_decay: float | None = None,
    head_solver: Literal["auto", "logistic", "sgd"] = "auto",
    sweep: Literal["auto", "off"] = "auto",
    schedule: Literal["cosine", "constant", "step"] = "cosine",
    warmup_epochs: int = 0,
    augment: Literal["none", "photo", "mono", "digits", "randaugment", "trivialaugment"] = "photo",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    patience: int = 0,
    cache: Literal["auto", "off", "features", "activations"] = "auto",
    cache_views: int | None = None,
    cache_budget: float = 16.0,
    select: Literal["accuracy", "balanced", "macro-f1", "loss", "last"] | None = None,
    val: float = 0.2,
    labels_per_class: int | None = None,
    label_fraction: float | None = None,
    group_by: str | None = None,
    folds: int = 0,
    repeats: int = 1,
    progress: bool | None = None,
) -> FinetuneResult:
    """A classifier from the labelled images of `data`.

    Returns a `FinetunePlan` with `dry_run=True`. Raises the errors of `unfreeze.errors`.

    Parameters:
        data: one or several: folder, archive, CSV or Parquet, shards, address or built-in name.
        time_budget: time that the run may take (30m, 1h, 1-12:00:00, or minutes): network, image size and epochs that are not given are chosen to fit, by the speed measured on this machine.
        label_smoothing: label smoothing: share of each label spread over all classes.
        class_weights: weight of each class in the loss: equal, by inverse frequency (balanced), or by its square root (sqrt). One of: 'none', 'balanced', 'sqrt'.
        sampling: images of an epoch: each once (natural), or the same number of every class (balanced). One of: 'natural', 'balanced'.
        mixup: mixup: alpha of its beta distribution, often 0.2 (0: off).
        cutmix: CutMix: alpha of its beta distribution, often 1 (0: off); with mixup each batch takes one of the two.
        clip_grad: gradient clipping: the largest norm (0: off).
        accumulate: gradient accumulation: parts of a batch, for less memory; batch norm sees each part alone.
        ema: exponential moving average of the weights with this decay, often 0.99 to 0.9999 (0: off).
        device: where to compute. One of: 'auto', 'cpu', 'cuda', 'mps'.
        precision: numerical precision: auto takes bf16 where the hardware has it. One of: 'auto', 'fp32', 'bf16', 'fp16'.
        workers: processes that load images (0: the main process).
        data_root: folder for built-in data sets.
        range: which values are black and white in 16-bit and float images: one range for the whole dataset where its values allow it (auto), each image by its own depth or values (image), by the type (full), 0.5 % to 99.5 % of each image (percentile), or LOW:HIGH. One of: 'auto', 'image', 'full', 'percentile', LOW:HIGH.
        channels: channels of the files that are used, counted from 0: three, or one (of many, as in TIFF files of cameras and satellites).
        scan: decode all files before training to find broken ones, a sample, or none. One of: 'full', 'sample', 'off'.
        store: where decoded images are held: memory, disk (a memory map that processes share and later runs find again) or off; auto takes memory for one process up to 1 GiB, else disk. One of: 'auto', 'memory', 'disk', 'off'.
        store_budget: GiB that decoded images may take, in memory or on the disk.
        limit: use at most N training images.
        labels: labels from elsewhere: a CSV or Parquet file (path, label, maybe split, group) joined by name, another column of the list itself, or a regular expression whose first group in a image's path is its label.
        label_column: column of the labels, in the list that labels names or in a list that is DATA itself.
        split_from: splits from elsewhere: a run, or a CSV like its split.csv; images that it does not name are not used.
        out: folder of the run (new or empty).
        resume: resume from the run's last checkpoint; without one, start from the beginning. One of: 'auto', True.
        overwrite: delete the previous run in that folder first.
        dry_run: print the plan with its reasons and write nothing.
        seed: seed of every random choice.
        checkpoint_every: epochs between checkpoints (None: 1; with features kept, each half minute; always at the end and at least every 5 minutes).
        keep_every: also keep a separate checkpoint every N epochs, with its metrics in its name.
        time_limit: save and stop (exit code 130) before this much time has passed: 30m, 2h, 1-12:00:00, or minutes; with resume='auto' the same command starts and resumes.
        logger: experiment trackers that also get the metrics, one or several, each an extra (unfreeze[wandb]); a tracker that fails does not stop the run. One of: 'none', 'tensorboard', 'wandb', 'mlflow'.
        config: settings from a TOML file.
        arch: network: torchvision/NAME, timm/NAME, unfreeze/NAME (None: the run's, or resnet50).
        weights: start from: none, imagenet, swav, NAME, URL, FILE or RUN.
        allow_partial: accept weights that match less than 90 % of the backbone; the rest stays random.
        freeze: which layers to freeze: none, all (but the head), norms, stage:N (the stem and N stages) or regex:PATTERN.
        unfreeze_at: layers to unfreeze from an epoch on (with -: to freeze again): "5:layer4,10:all,20:-layer1".
        layer_decay: layer-wise learning rate decay: each stage's rate as a share of the next one's (1: off).
        head: the new head: replace, append (behind the old outputs) or mlp:WIDTH.
        stem: first layers: small keeps the resolution of small images. One of: 'auto', 'imagenet', 'small'.
        image_size: side of the network's input in pixels.
        epochs: passes over the training images.
        batch_size: images per step, over all processes.
        lr: learning rate after the warm-up.
        find_lr: learning rate finder: try rising rates and take the one at which the loss falls fastest.
        head_lr: learning rate of the new head alone.
        optimizer: which optimizer. One of: 'sgd', 'adamw', 'lars'.
        momentum: momentum of sgd and lars.
        weight_decay: weight decay (None: 0.0001, or the sweep's).
        head_solver: how a linear head is fitted when everything else is frozen: auto solves it (logistic regression on features), sgd trains it. One of: 'auto', 'logistic', 'sgd'.
        sweep: with cached features for a linear head that is trained: try rates and weight decays that are not given at once, and take the best on validation. One of: 'auto', 'off'.
        schedule: learning rate schedule. One of: 'cosine', 'constant', 'step'.
        warmup_epochs: epochs of linear warm-up.
        augment: data augmentation: photo crops, flips and changes colours a little; mono is photo for grey images; digits rotates a little and never flips; randaugment and trivialaugment crop, flip and apply torchvision's policies. One of: 'none', 'photo', 'mono', 'digits', 'randaugment', 'trivialaugment'.
        mean: channel means (None: those of the weights).
        std: channel standard deviations (None: those of the weights).
        patience: early stopping: epochs without improvement (0: off).
        cache: compute the output of the frozen layers once and train from it: features where only the head trains, activations where some layers train too. One of: 'auto', 'off', 'features', 'activations'.
        cache_views: random views of each image in the cache (1: no augmentation).
        cache_budget: GiB of disk for all cached features; the least recently used are removed first.
        select: validation metric that chooses the best epoch; balanced and macro-f1 weight all classes equally, last keeps the last epoch. One of: 'accuracy', 'balanced', 'macro-f1', 'loss', 'last'.
        val: share of train held out for validation where there is no val.
        labels_per_class: use this many training images of each class.
        label_fraction: use this share of the training images.
        group_by: keep images of one group in the same split: a CSV column, or a regular expression whose first group is taken (without it: the CSV's column `group`, if any).
        folds: cross-validation before the run itself: N folds, each held out once (0: none).
        repeats: repeat cross-validation with N seeds; without folds, N validation splits.
        progress: show progress (None: in a notebook or a terminal).
    """
@overload
def finetune(
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    time_budget: str | None = None,
    label_smoothing: float = 0.0,
    class_weights: Literal["none", "balanced", "sqrt"] = "none",
    sampling: Literal["natural", "balanced"] = "natural",
    mixup: float = 0.0,
    cutmix: float = 0.0,
    clip_grad: float = 0.0,
    accumulate: int = 1,
    ema: float = 0.0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    data_root: str | PathLike[str] = "data",
    range: str | None = None,
    channels: int | Sequence[int] | None = None,
    scan: Literal["full", "sample", "off"] = "full",
    store: Literal["auto", "memory", "disk", "off"] = "auto",
    store_budget: float = 16.0,
    limit: int | None = None,
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    split_from: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool | Literal["auto"] | None = None,
    overwrite: bool = False,
    dry_run: Literal[True],
    seed: int = 0,
    checkpoint_every: int | None = None,
    keep_every: int | None = None,
    time_limit: str | None = None,
    logger: Literal["none", "tensorboard", "wandb", "mlflow"] | Sequence[Literal["none", "tensorboard", "wandb", "mlflow"]] = ("none",),
    config: str | PathLike[str] | None = None,
    arch: str | None = None,
    weights: str | PathLike[str] = "imagenet",
    allow_partial: bool = False,
    freeze: str = "none",
    unfreeze_at: str | None = None,
    layer_decay: float = 1.0,
    head: str = "replace",
    stem: Literal["auto", "imagenet", "small"] = "auto",
    image_size: int | None = None,
    epochs: int = 30,
    batch_size: int | None = None,
    lr: float | None = None,
    find_lr: bool = False,
    head_lr: float | None = None,
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd",
    momentum: float = 0.9,
    weight_decay: float | None = None,
    head_solver: Literal["auto", "logistic", "sgd"] = "auto",
    sweep: Literal["auto", "off"] = "auto",
    schedule: Literal["cosine", "constant", "step"] = "cosine",
    warmup_epochs: int = 0,
    augment: Literal["none", "photo", "mono", "digits", "randaugment", "trivialaugment"] = "photo",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    patience: int = 0,
    cache: Literal["auto", "off", "features", "activations"] = "auto",
    cache_views: int | None = None,
    cache_budget: float = 16.0,
    select: Literal["accuracy", "balanced", "macro-f1", "loss", "last"] | None = None,
    val: float = 0.2,
    labels_per_class: int | None = None,
    label_fraction: float | None = None,
    group_by: str | None = None,
    folds: int = 0,
    repeats: int = 1,
    progress: bool | None = None,
) -> FinetunePlan: ...
@overload
def finetune(
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    time_budget: str | None = None,
    label_smoothing: float = 0.0,
    class_weights: Literal["none", "balanced", "sqrt"] = "none",
    sampling: Literal["natural", "balanced"] = "natural",
    mixup: float = 0.0,
    cutmix: float = 0.0,
    clip_grad: float = 0.0,
    accumulate: int = 1,
    ema: float = 0.0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    data_root: str | PathLike[str] = "data",
    range: str | None = None,
    channels: int | Sequence[int] | None = None,
    scan: Literal["full", "sample", "off"] = "full",
    store: Literal["auto", "memory", "disk", "off"] = "auto",
    store_budget: float = 16.0,
    limit: int | None = None,
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    split_from: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool | Literal["auto"] | None = None,
    overwrite: bool = False,
    dry_run: bool,
    seed: int = 0,
    checkpoint_every: int | None = None,
    keep_every: int | None = None,
    time_limit: str | None = None,
    logger: Literal["none", "tensorboard", "wandb", "mlflow"] | Sequence[Literal["none", "tensorboard", "wandb", "mlflow"]] = ("none",),
    config: str | PathLike[str] | None = None,
    arch: str | None = None,
    weights: str | PathLike[str] = "imagenet",
    allow_partial: bool = False,
    freeze: str = "none",
    unfreeze_at: str | None = None,
    layer_decay: float = 1.0,
    head: str = "replace",
    stem: Literal["auto", "imagenet", "small"] = "auto",
    image_size: int | None = None,
    epochs: int = 30,
    batch_size: int | None = None,
    lr: float | None = None,
    find_lr: bool = False,
    head_lr: float | None = None,
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd",
    momentum: float = 0.9,
    weight_decay: float | None = None,
    head_solver: Literal["auto", "logistic", "sgd"] = "auto",
    sweep: Literal["auto", "off"] = "auto",
    schedule: Literal["cosine", "constant", "step"] = "cosine",
    warmup_epochs: int = 0,
    augment: Literal["none", "photo", "mono", "digits", "randaugment", "trivialaugment"] = "photo",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    patience: int = 0,
    cache: Literal["auto", "off", "features", "activations"] = "auto",
    cache_views: int | None = None,
    cache_budget: float = 16.0,
    select: Literal["accuracy", "balanced", "macro-f1", "loss", "last"] | None = None,
    val: float = 0.2,
    labels_per_class: int | None = None,
    label_fraction: float | None = None,
    group_by: str | None = None,
    folds: int = 0,
    repeats: int = 1,
    progress: bool | None = None,
) -> FinetuneResult | FinetunePlan: ...
def predict(
    run: str | PathLike[str],
    images: str | PathLike[str] | bytes | ndarray | Image | Iterable[str | PathLike[str] | bytes | ndarray | Image],
    *,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    batch_size: int = 64,
    data_root: str | PathLike[str] = "data",
    config: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> Predictions:
    """The most likely class of each image: files, folders or archives, or images in memory.

    `images` is one of them, or anything to go through: paths, Pillow images, arrays [H, W, 3] and
    encoded bytes; what is no file is named by its position. Unreadable files among others are left
    out; DataError where none can be read, UsageError for what is no image, and where there is none.

    Parameters:
        run: a run's folder, or its model/ folder.
        images: images, folders or archives.
        device: where to compute. One of: 'auto', 'cpu', 'cuda', 'mps'.
        precision: numerical precision: auto takes bf16 where the hardware has it. One of: 'auto', 'fp32', 'bf16', 'fp16'.
        workers: processes that load images (0: the main process).
        batch_size: images per batch.
        data_root: folder for built-in data sets.
        config: settings from a TOML file.
        out: write the CSV here instead of stdout.
        progress: show progress (None: in a notebook or a terminal).
    """
@overload
def pretrain(
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    time_budget: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    data_root: str | PathLike[str] = "data",
    range: str | None = None,
    channels: int | Sequence[int] | None = None,
    scan: Literal["full", "sample", "off"] = "full",
    store: Literal["auto", "memory", "disk", "off"] = "auto",
    store_budget: float = 16.0,
    limit: int | None = None,
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    split_from: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool | Literal["auto"] | None = None,
    overwrite: bool = False,
    dry_run: Literal[False] = False,
    seed: int = 0,
    checkpoint_every: int = 1,
    keep_every: int | None = None,
    time_limit: str | None = None,
    logger: Literal["none", "tensorboard", "wandb", "mlflow"] | Sequence[Literal["none", "tensorboard", "wandb", "mlflow"]] = ("none",),
    config: str | PathLike[str] | None = None,
    arch: str | None = None,
    init: str | PathLike[str] = "none",
    allow_partial: bool = False,
    method: Literal["swav", "deepcluster-v2"] = "swav",
    recipe: Literal["auto", "swav-100ep", "swav-200ep", "swav-400ep", "swav-800ep", "swav-200ep-bs256", "swav-400ep-bs256", "swav-400ep-2x224", "swav-w2-400ep", "swav-w4-400ep"] = "auto",
    stem: Literal["auto", "imagenet", "small"] = "auto",
    image_size: int | None = None,
    augment: Literal["photo", "small", "mono", "digits"] | None = None,
    epochs: int | None = None,
    watch_every: int | None = None,
    keep: Literal["last", "best"] = "last",
    on_collapse: Literal["stop", "recover", "ignore"] = "stop",
    batch_size: int | None = None,
    accumulate: int = 1,
    sync_bn: Literal["auto", "all", "groups", "none"] = "auto",
    syncbn_process_group_size: int = 8,
    tune: Literal["auto", "off"] = "auto",
    views_on: Literal["device", "host"] | None = None,
    optimizer: Literal["larc", "adamw", "sgd"] | None = None,
    nmb_crops: int | Sequence[int] | None = None,
    size_crops: int | Sequence[int] | None = None,
    min_scale_crops: float | Sequence[float] | None = None,
    max_scale_crops: float | Sequence[float] | None = None,
    crops_for_assign: int | Sequence[int] = (0, 1),
    temperature: float = 0.1,
    epsilon: float | None = None,
    sinkhorn_iterations: int = 3,
    feat_dim: int = 128,
    hidden_mlp: int | None = None,
    nmb_prototypes: int | None = None,
    queue_length: int | None = None,
    epoch_queue_starts: int | None = None,
    queue_start: Literal["epoch", "auto"] = "epoch",
    clusterings: int = 3,
    kmeans_iterations: int = 10,
    base_lr: float | None = None,
    final_lr: float | None = None,
    warmup_epochs: int | None = None,
    start_warmup: float | None = None,
    freeze_prototypes_niters: int | None = None,
    wd: float | None = None,
    progress: bool | None = None,
) -> PretrainResult:
    """SwAV on the images of `data`, without labels.

    Returns a `PretrainPlan` with `dry_run=True`. Raises the errors of `unfreeze.errors`.

    Parameters:
        data: one or several: folder, archive, CSV or Parquet, shards, address or built-in name.
        time_budget: time that the run may take (30m, 1h, 1-12:00:00, or minutes): network, image size and epochs that are not given are chosen to fit, by the speed measured on this machine.
        device: where to compute. One of: 'auto', 'cpu', 'cuda', 'mps'.
        precision: numerical precision: auto takes bf16 where the hardware has it. One of: 'auto', 'fp32', 'bf16', 'fp16'.
        workers: processes that load images (0: the main process).
        data_root: folder for built-in data sets.
        range: which values are black and white in 16-bit and float images: one range for the whole dataset where its values allow it (auto), each image by its own depth or values (image), by the type (full), 0.5 % to 99.5 % of each image (percentile), or LOW:HIGH. One of: 'auto', 'image', 'full', 'percentile', LOW:HIGH.
        channels: channels of the files that are used, counted from 0: three, or one (of many, as in TIFF files of cameras and satellites).
        scan: decode all files before training to find broken ones, a sample, or none. One of: 'full', 'sample', 'off'.
        store: where decoded images are held: memory, disk (a memory map that processes share and later runs find again) or off; auto takes memory for one process up to 1 GiB, else disk. One of: 'auto', 'memory', 'disk', 'off'.
        store_budget: GiB that decoded images may take, in memory or on the disk.
        limit: use at most N training images.
        labels: labels from elsewhere: a CSV or Parquet file (path, label, maybe split, group) joined by name, another column of the list itself, or a regular expression whose first group in a image's path is its label.
        label_column: column of the labels, in the list that labels names or in a list that is DATA itself.
        split_from: splits from elsewhere: a run, or a CSV like its split.csv; images that it does not name are not used.
        out: folder of the run (new or empty).
        resume: resume from the run's last checkpoint; without one, start from the beginning. One of: 'auto', True.
        overwrite: delete the previous run in that folder first.
        dry_run: print the plan with its reasons and write nothing.
        seed: seed of every random choice.
        checkpoint_every: epochs between checkpoints (also at least every 5 minutes).
        keep_every: also keep a separate checkpoint every N epochs, with its metrics in its name.
        time_limit: save and stop (exit code 130) before this much time has passed: 30m, 2h, 1-12:00:00, or minutes; with resume='auto' the same command starts and resumes.
        logger: experiment trackers that also get the metrics, one or several, each an extra (unfreeze[wandb]); a tracker that fails does not stop the run. One of: 'none', 'tensorboard', 'wandb', 'mlflow'.
        config: settings from a TOML file.
        arch: network: torchvision/NAME, timm/NAME or unfreeze/NAME (None: by image and device).
        init: start from: none, imagenet, swav, NAME, URL, FILE or RUN; a SwAV head too.
        allow_partial: accept weights that match less than 90 % of the backbone; the rest stays random.
        method: where codes come from: Sinkhorn, or k-means before each epoch. One of: 'swav', 'deepcluster-v2'.
        recipe: where unset values come from: the images, or a published ImageNet run. One of: 'auto', 'swav-100ep', 'swav-200ep', 'swav-400ep', 'swav-800ep', 'swav-200ep-bs256', 'swav-400ep-bs256', 'swav-400ep-2x224', 'swav-w2-400ep', 'swav-w4-400ep'.
        stem: first layers: small keeps the resolution of small images. One of: 'auto', 'imagenet', 'small'.
        image_size: side of the large crop in pixels; the small one is in proportion.
        augment: augmentation by kind of image. One of: 'photo', 'small', 'mono', 'digits'.
        epochs: epochs (0: write the untrained model).
        watch_every: epochs between feature evaluations, with k-NN where there are labels (0: never).
        keep: which epoch's weights go into model/: the last, or the best (checkpoints/best.ckpt). One of: 'last', 'best'.
        on_collapse: on collapse (all features alike): save and stop, go back and change a setting, or ignore it. One of: 'stop', 'recover', 'ignore'.
        batch_size: images per step, over all processes.
        accumulate: gradient accumulation: parts of a batch, for less memory; codes are of the whole batch.
        sync_bn: batch norm over processes: auto is all of them, groups is neighbours. One of: 'auto', 'all', 'groups', 'none'.
        syncbn_process_group_size: processes that share a batch norm with sync_bn='groups'.
        tune: measure before the first step, within 5 s, the fastest threads, precision, layout and workers; a resumed run keeps its choice. One of: 'auto', 'off'.
        views_on: where crops are made: on the device, a batch at once, from small images held there, or on the host one by one. One of: 'device', 'host'.
        optimizer: optimizer; larc is the published one. One of: 'larc', 'adamw', 'sgd'.
        nmb_crops: crops per image at each resolution.
        size_crops: side of the crops at each resolution, pixels.
        min_scale_crops: smallest share of the image in a crop.
        max_scale_crops: largest share of the image in a crop.
        crops_for_assign: crops whose codes the others predict.
        temperature: temperature of the prediction.
        epsilon: entropy of the Sinkhorn codes.
        sinkhorn_iterations: rounds of Sinkhorn.
        feat_dim: width of the projected feature.
        hidden_mlp: hidden width of the projection head (0: one layer).
        nmb_prototypes: number of prototypes K.
        queue_length: queue of past features for the codes, over all processes (0: off).
        epoch_queue_starts: epoch from which the queue fills, counted from 0.
        queue_start: epoch: as published; auto: earlier if features settle, dropped if the loss climbs. One of: 'epoch', 'auto'.
        clusterings: k-means of deepcluster-v2, each with prototypes of its own.
        kmeans_iterations: rounds of k-means before an epoch.
        base_lr: learning rate after the warm-up.
        final_lr: learning rate at the end.
        warmup_epochs: epochs of linear warm-up.
        start_warmup: learning rate at the first step of a warm-up.
        freeze_prototypes_niters: steps for which the prototypes are frozen.
        wd: weight decay.
        progress: show progress (None: in a notebook or a terminal).
    """
@overload
def pretrain(
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    time_budget: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    data_root: str | PathLike[str] = "data",
    range: str | None = None,
    channels: int | Sequence[int] | None = None,
    scan: Literal["full", "sample", "off"] = "full",
    store: Literal["auto", "memory", "disk", "off"] = "auto",
    store_budget: float = 16.0,
    limit: int | None = None,
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    split_from: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool | Literal["auto"] | None = None,
    overwrite: bool = False,
    dry_run: Literal[True],
    seed: int = 0,
    checkpoint_every: int = 1,
    keep_every: int | None = None,
    time_limit: str | None = None,
    logger: Literal["none", "tensorboard", "wandb", "mlflow"] | Sequence[Literal["none", "tensorboard", "wandb", "mlflow"]] = ("none",),
    config: str | PathLike[str] | None = None,
    arch: str | None = None,
    init: str | PathLike[str] = "none",
    allow_partial: bool = False,
    method: Literal["swav", "deepcluster-v2"] = "swav",
    recipe: Literal["auto", "swav-100ep", "swav-200ep", "swav-400ep", "swav-800ep", "swav-200ep-bs256", "swav-400ep-bs256", "swav-400ep-2x224", "swav-w2-400ep", "swav-w4-400ep"] = "auto",
    stem: Literal["auto", "imagenet", "small"] = "auto",
    image_size: int | None = None,
    augment: Literal["photo", "small", "mono", "digits"] | None = None,
    epochs: int | None = None,
    watch_every: int | None = None,
    keep: Literal["last", "best"] = "last",
    on_collapse: Literal["stop", "recover", "ignore"] = "stop",
    batch_size: int | None = None,
    accumulate: int = 1,
    sync_bn: Literal["auto", "all", "groups", "none"] = "auto",
    syncbn_process_group_size: int = 8,
    tune: Literal["auto", "off"] = "auto",
    views_on: Literal["device", "host"] | None = None,
    optimizer: Literal["larc", "adamw", "sgd"] | None = None,
    nmb_crops: int | Sequence[int] | None = None,
    size_crops: int | Sequence[int] | None = None,
    min_scale_crops: float | Sequence[float] | None = None,
    max_scale_crops: float | Sequence[float] | None = None,
    crops_for_assign: int | Sequence[int] = (0, 1),
    temperature: float = 0.1,
    epsilon: float | None = None,
    sinkhorn_iterations: int = 3,
    feat_dim: int = 128,
    hidden_mlp: int | None = None,
    nmb_prototypes: int | None = None,
    queue_length: int | None = None,
    epoch_queue_starts: int | None = None,
    queue_start: Literal["epoch", "auto"] = "epoch",
    clusterings: int = 3,
    kmeans_iterations: int = 10,
    base_lr: float | None = None,
    final_lr: float | None = None,
    warmup_epochs: int | None = None,
    start_warmup: float | None = None,
    freeze_prototypes_niters: int | None = None,
    wd: float | None = None,
    progress: bool | None = None,
) -> PretrainPlan: ...
@overload
def pretrain(
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    time_budget: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int | None = None,
    data_root: str | PathLike[str] = "data",
    range: str | None = None,
    channels: int | Sequence[int] | None = None,
    scan: Literal["full", "sample", "off"] = "full",
    store: Literal["auto", "memory", "disk", "off"] = "auto",
    store_budget: float = 16.0,
    limit: int | None = None,
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    split_from: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool | Literal["auto"] | None = None,
    overwrite: bool = False,
    dry_run: bool,
    seed: int = 0,
    checkpoint_every: int = 1,
    keep_every: int | None = None,
    time_limit: str | None = None,
    logger: Literal["none", "tensorboard", "wandb", "mlflow"] | Sequence[Literal["none", "tensorboard", "wandb", "mlflow"]] = ("none",),
    config: str | PathLike[str] | None = None,
    arch: str | None = None,
    init: str | PathLike[str] = "none",
    allow_partial: bool = False,
    method: Literal["swav", "deepcluster-v2"] = "swav",
    recipe: Literal["auto", "swav-100ep", "swav-200ep", "swav-400ep", "swav-800ep", "swav-200ep-bs256", "swav-400ep-bs256", "swav-400ep-2x224", "swav-w2-400ep", "swav-w4-400ep"] = "auto",
    stem: Literal["auto", "imagenet", "small"] = "auto",
    image_size: int | None = None,
    augment: Literal["photo", "small", "mono", "digits"] | None = None,
    epochs: int | None = None,
    watch_every: int | None = None,
    keep: Literal["last", "best"] = "last",
    on_collapse: Literal["stop", "recover", "ignore"] = "stop",
    batch_size: int | None = None,
    accumulate: int = 1,
    sync_bn: Literal["auto", "all", "groups", "none"] = "auto",
    syncbn_process_group_size: int = 8,
    tune: Literal["auto", "off"] = "auto",
    views_on: Literal["device", "host"] | None = None,
    optimizer: Literal["larc", "adamw", "sgd"] | None = None,
    nmb_crops: int | Sequence[int] | None = None,
    size_crops: int | Sequence[int] | None = None,
    min_scale_crops: float | Sequence[float] | None = None,
    max_scale_crops: float | Sequence[float] | None = None,
    crops_for_assign: int | Sequence[int] = (0, 1),
    temperature: float = 0.1,
    epsilon: float | None = None,
    sinkhorn_iterations: int = 3,
    feat_dim: int = 128,
    hidden_mlp: int | None = None,
    nmb_prototypes: int | None = None,
    queue_length: int | None = None,
    epoch_queue_starts: int | None = None,
    queue_start: Literal["epoch", "auto"] = "epoch",
    clusterings: int = 3,
    kmeans_iterations: int = 10,
    base_lr: float | None = None,
    final_lr: float | None = None,
    warmup_epochs: int | None = None,
    start_warmup: float | None = None,
    freeze_prototypes_niters: int | None = None,
    wd: float | None = None,
    progress: bool | None = None,
) -> PretrainResult | PretrainPlan: ...
def report(
    run: str | PathLike[str],
    *,
    config: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> Report:
    """Draw `report.html`, `curves.png` and `prototypes.png` into the run's folder.

    Whatever the run has left behind is shown and nothing is required beyond its `config.toml`,
    `metrics.jsonl` or `demo.json`; UsageError for a folder that has none of them.

    Parameters:
        run: a run's folder.
        config: settings from a TOML file.
        progress: show progress (None: in a notebook or a terminal).
    """
def scan(
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    config: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    quarantine: str | PathLike[str] | None = None,
    undo: str | PathLike[str] | None = None,
    seconds: float = 30.0,
    workers: int | None = None,
    data_root: str | PathLike[str] = "data",
    progress: bool | None = None,
) -> ScanResult:
    """Decode every image of `data` in processes of their own.

    DataError for data that cannot be read at all; a broken image is an answer, not an error.

    Parameters:
        data: one or several: folder, archive, CSV or Parquet, shards, address or built-in name.
        config: settings from a TOML file.
        out: folder for problems.csv and scan.html, a page with thumbnails.
        quarantine: move unusable files to this folder, with a manifest to undo it; an archive gets a list of exclusions instead.
        undo: restore the files that quarantine moved to this folder.
        seconds: time limit of the decoder for one file.
        workers: decoding processes (None: one per core).
        data_root: folder for built-in data sets.
        progress: show progress (None: in a notebook or a terminal).
    """
def show(
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | None = None,
    *,
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    split_from: str | PathLike[str] | None = None,
    config: str | PathLike[str] | None = None,
    run: str | PathLike[str] | None = None,
    augment: Literal["photo", "small", "mono", "digits"] | None = None,
    image_size: int | None = None,
    scan: Literal["full", "sample", "off"] = "sample",
    range: Literal["auto", "full", "percentile"] | None = None,
    channels: int | Sequence[int] | None = None,
    samples: int = 6,
    seed: int = 0,
    workers: int | None = None,
    data_root: str | PathLike[str] = "data",
    progress: bool | None = None,
) -> ShowResult:
    """Write a self-contained HTML page about `data`.

    Parameters:
        data: one or several: folder, archive, CSV or Parquet, shards, address or built-in name.
        labels: labels from elsewhere: a CSV or Parquet file (path, label, maybe split, group) joined by name, another column of the list itself, or a regular expression whose first group in a image's path is its label.
        label_column: column of the labels, in the list that labels names or in a list that is DATA itself.
        split_from: splits from elsewhere: a run, or a CSV like its split.csv; images that it does not name are not used.
        config: settings from a TOML file.
        out: the HTML file to write (None: NAME.html in this folder).
        run: a run whose input and random views are shown (None: those of a new pretraining).
        augment: augmentation of the views shown. One of: 'photo', 'small', 'mono', 'digits'.
        image_size: side of the large crop in pixels.
        scan: decode all files to find problems, a sample, or none; earlier findings are always shown. One of: 'full', 'sample', 'off'.
        range: which values are black and white in 16-bit and float images, as in pretrain. One of: 'auto', 'full', 'percentile'.
        channels: channels of multi-channel files to use, counted from 0: one or three.
        samples: sample images of each class.
        seed: seed of the samples and views.
        workers: processes that decode.
        data_root: folder for built-in data sets.
        progress: show progress (None: in a notebook or a terminal).
    """
def summary(
    arch: str,
    *,
    config: str | PathLike[str] | None = None,
    input: str = "3x224x224",
    classes: int | None = None,
    freeze: str | None = None,
    stem: Literal["imagenet", "small"] = "imagenet",
    progress: bool | None = None,
) -> Summary:
    """The layers of a network by name, of a run's model, or of the network of a checkpoint.

    It costs no arithmetic: shapes are found on the meta device.

    Parameters:
        arch: a network's name, a run's folder or a checkpoint.
        config: settings from a TOML file.
        input: channels x height x width.
        classes: number of classes of a new head (None: the network's own).
        freeze: which layers are frozen: none, all, norms, stage:N or regex:PATTERN.
        stem: first layers. One of: 'imagenet', 'small'.
        progress: show progress (None: in a notebook or a terminal).
    """
