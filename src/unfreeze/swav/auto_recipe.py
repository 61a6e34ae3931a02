"""The auto recipe: derives every value that was not given from the dataset, with a reason.

A pure function: `plan(settings, facts) -> Plan`. The published recipe is tuned for ImageNet
(1.28 million images, batches of 4,096). Here its values are stated in epochs and shares, as its raw
counts fail on small datasets: 5,005 steps of frozen prototypes are one epoch of ImageNet but 250
epochs of 1,300 images; 3,840 queued features are 0.3 % of ImageNet but three times 1,300 images.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.config import CropSpec, preset
from unfreeze.errors import DataError, UsageError
from unfreeze.optim.optimizer import warmup_cosine
from unfreeze.swav.continued_recipe import CONTINUED_LR, continued_values
from unfreeze.swav.crop_recipe import FEW, TINY, crop_values, few_photographs
from unfreeze.swav.dataset_stats import SMALL, DatasetStats, choose_crop_device
from unfreeze.swav.evaluation_schedule import EvaluationSchedule
from unfreeze.swav.presets import (
    EPSILON,
    PUBLISHED,
    SHARPEST,
    check_method,
    choose_method,
    usual_side,
    with_recipe,
)
from unfreeze.tasks.registry import pretrain_task

PROTOTYPES_MOST = 3_000  # prototypes, as published for 1.28 million images
# up to this many prototypes per image of a batch no queue is needed; on 10,000 images a queue
# cost 2 points of k-NN accuracy (docs/LOG.md)
PROTOTYPES_PER_IMAGE = 4


class ValueWithReason(NamedTuple):
    """A value and its reason."""

    value: int
    why: str


def max_queue_length(images: int, batch: int) -> int:
    """Maximum queue length: at most 15 batches and a quarter of the images, in full batches."""
    return min(15 * batch, images // 4) // batch * batch


def max_prototypes(batch: int, queue: int) -> int:
    """Number of prototypes that the codes of such a batch and queue can fill."""
    return max(PROTOTYPES_PER_IMAGE * batch, batch + queue)


def prototype_count(images: int, batch: int | None, queue: int | None) -> ValueWithReason:
    """Number of prototypes K. `batch` None: not limited by it; `queue` None: the longest one."""
    by_images = 8 * round(100 * (images / 10_000) ** 0.7 / 8)
    K = min(PROTOTYPES_MOST, max(64, by_images), max(2, images // 8))
    why = f"grows with the {images:,} images (3,000 for a million)"
    if batch is None:
        return ValueWithReason(K, why)
    length = max_queue_length(images, batch) if queue is None else queue
    limit = max_prototypes(batch, length)
    if limit < K:
        queued = f" and {length} queued features" if limit == batch + length else ""
        return ValueWithReason(limit, f"as many as a batch of {batch}{queued} can fill")
    return ValueWithReason(K, why)


def queue_length(images: int, batch: int, K: int) -> ValueWithReason:
    """Queue length, 0 where the batch needs no queue."""
    if PROTOTYPES_PER_IMAGE * batch >= K:
        return ValueWithReason(0, f"a batch of {batch} is enough for {K:,} prototypes")
    length = max_queue_length(images, batch)
    if not length:
        return ValueWithReason(0, f"{images:,} images are too few for a queue")
    return ValueWithReason(length, f"at most a quarter of the {images:,} images and 15 batches")


@dataclass(frozen=True)
class PretrainRecipe:
    """Complete settings, and the reason of each derived value."""

    settings: PretrainSettings
    reasons: dict[str, str]
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Total steps of the run."""
        return self.steps_per_epoch * _int(self.settings.epochs)

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        return self.steps_per_epoch * _int(self.settings.warmup_epochs)

    @property
    def loss_collapsed(self) -> float:
        """The loss ln K of a collapsed network: a healthy run gets below."""
        return math.log(_int(self.settings.nmb_prototypes) or 1)

    @property
    def loss_at_start(self) -> float:
        """Approximate loss of an untrained network.

        Cosines of d-dimensional directions have variance 1/d; divided by the temperature T they
        raise the mean of log-sum-exp over K prototypes to ln K + 1 / (2 d T^2).
        """
        s = self.settings
        return self.loss_collapsed + 1 / (2 * s.feat_dim * s.temperature**2)

    def learning_rate(self, step: int) -> float:
        """Learning rate at a global step."""
        return warmup_cosine(
            step,
            total=self.steps,
            warmup=self.warmup_steps,
            base=self.settings.base_lr or 0.0,
            final=self.settings.final_lr or 0.0,
            start=self.settings.start_warmup or 0.0,
        )


@dataclass
class _Draft:
    """Settings under construction."""

    values: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)

    def fill(self, name: str, value: Any, reason: str) -> None:
        """Set `value` unless the user gave one; without `reason` it is not listed."""
        if self.values[name] is None:
            self.values[name] = value
            self.reasons |= {name: reason} if reason else {}

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def choose_arch(settings: PretrainSettings, side: int, images: int, device: str) -> tuple[str, str]:
    """(architecture, reason): small networks for small or few images and for CPUs."""
    if settings.arch:
        return settings.arch, "given"
    if side < 24:
        return "unfreeze/tiny", f"images of {side} pixels"
    if side <= 64:
        return "unfreeze/small", f"images of {side} pixels"
    if device == "cpu" and images < FEW:
        return "unfreeze/small", f"{images:,} images are few for a larger network (docs/LOG.md)"
    if device == "cpu":
        return "torchvision/resnet18", "no GPU: a fifth of ResNet-50's cost"
    return "torchvision/resnet50", "the network SwAV was published with"


def plan(settings: PretrainSettings, facts: DatasetStats) -> PretrainRecipe:
    """Derive every missing value. Raises DataError for too few images, UsageError for conflicts."""
    if facts.images < 2:
        raise DataError(
            f"{facts.images} usable image is too few to train on.",
            "Add at least a few hundred images.",
        )
    given = settings.size_crops or (settings.image_size or usual_side(facts.side, facts.device),)
    method, why = choose_method(settings, given[0])
    settings = dataclasses.replace(settings, method=method or settings.method)
    check_method(settings)
    settings, named = with_recipe(settings)
    draft = _Draft(dataclasses.asdict(settings), named | ({"method": why} if method else {}))
    for name, value, reason in crop_values(settings, facts):
        draft.fill(name, value, reason)
    _batch(draft, facts)
    _length(draft, facts)
    _codes(draft, facts)
    _optimizer(draft, facts)
    _processes(draft, facts)
    draft.fill("views_on", *choose_crop_device(settings, facts))
    for name, value, reason in continued_values(settings, facts, draft["epochs"]):
        draft.fill(name, value, reason)
    _watch(draft, facts)
    filled = dataclasses.replace(settings, **draft.values)
    _consistent(filled)
    return PretrainRecipe(filled, draft.reasons, facts.images // draft["batch_size"])


def view_specs(s: PretrainSettings) -> list[CropSpec]:
    """The specification of each view, large crops first, from complete settings."""
    by_size = zip(
        s.size_crops or (),
        s.nmb_crops or (),
        zip(s.min_scale_crops or (), s.max_scale_crops or (), strict=True),
        strict=True,
    )
    return [
        preset(s.augment or "photo", size, scale)
        for size, count, scale in by_size
        for _ in range(count)
    ]


def _batch(draft: _Draft, facts: DatasetStats) -> None:
    # on small datasets more steps beat larger batches (docs/LOG.md), down to batch norm's needs
    sixteenth = max(2, min(facts.images // 2, max(16, facts.images // 16)))
    small = draft["size_crops"][0] <= SMALL and facts.device == "cpu"  # a GPU is filled by 256
    size = min(128 if small else 256, 1 << (sixteenth.bit_length() - 1))
    why = "the small published batch" if size == 256 else f"{facts.images // size} steps per epoch"
    shares = facts.processes * draft["accumulate"]
    if size % shares:
        size = max(2, round(size / shares)) * shares
        why += f"; a multiple of {shares} (processes x --accumulate)"
    draft.fill("batch_size", size, why)
    if draft["batch_size"] > facts.images:
        raise _too_few(draft, facts)


def _too_few(draft: _Draft, facts: DatasetStats) -> DataError:
    sentence = f"{facts.images} images do not fill one batch of {draft['batch_size']}"
    recipe = draft["recipe"]
    if recipe == "auto" or draft["batch_size"] != PUBLISHED[recipe]["batch_size"]:
        return DataError(f"{sentence}.", "Lower --batch-size, or add images.")
    return DataError(
        f"{sentence}, as the recipe {recipe} requires: it is made for ImageNet.",
        "Leave out --recipe (values are then derived from your images), or lower --batch-size.",
    )


def _length(draft: _Draft, facts: DatasetStats) -> None:
    steps = facts.images // draft["batch_size"]
    target_steps = 4_000 if facts.device == "cpu" else 20_000
    epochs = min(400, max(25, round(target_steps / steps)))
    draft.fill("epochs", epochs, f"about {epochs * steps:,} steps of {draft['batch_size']}")
    draft.fill(
        "warmup_epochs", min(10, round(0.1 * draft["epochs"])), "10, at most 10 % of the epochs"
    )
    uses = pretrain_task(draft["method"]).uses
    if "freeze_prototypes_niters" not in uses:
        return
    if "clusterings" not in uses:
        draft.fill("freeze_prototypes_niters", steps, "one epoch, as published")
        return
    always = draft["epochs"] * steps
    draft.fill("freeze_prototypes_niters", always, "prototypes are the centroids of k-means")
    if draft["freeze_prototypes_niters"] != always:
        raise UsageError(
            "--freeze-prototypes-niters has no effect with --method deepcluster-v2: prototypes are "
            "the centroids of k-means.",
            "Leave it out.",
        )


def _codes(draft: _Draft, facts: DatasetStats) -> None:
    images, batch = facts.images, draft["batch_size"]
    uses = pretrain_task(draft["method"]).uses
    if "epsilon" in uses:
        draft.fill("nmb_prototypes", *prototype_count(images, batch, draft["queue_length"]))
        draft.fill("queue_length", *queue_length(images, batch, draft["nmb_prototypes"]))
        draft.fill("epsilon", *_epsilon(draft["augment"], draft["size_crops"][0], images))
    elif "clusterings" in uses:
        draft.fill("nmb_prototypes", *prototype_count(images, None, None))
        draft.fill("queue_length", 0, "labels come from k-means over all images")
        if draft["nmb_prototypes"] > images:
            raise UsageError(
                f"--nmb-prototypes {draft['nmb_prototypes']:,} exceeds the {images:,} images, "
                "and k-means starts each cluster from an image.",
                f"Use at most {images:,}; far fewer work better.",
            )
    if draft["queue_length"]:
        start = max(1, min(15, round(0.15 * draft["epochs"])))
        draft.fill("epoch_queue_starts", start, "15, at most 15 % of the epochs")
    draft.fill(
        "hidden_mlp", min(2048, 4 * facts.width), f"4 x {facts.width} features, 2,048 at most"
    )


def _epsilon(augment: str, pixels: int, images: int) -> tuple[float, str]:
    """(value, reason): on few or very similar images the published epsilon leaves codes uniform."""
    if augment == "digits":
        reason = "digits"
    elif pixels < TINY:
        reason = f"views of {pixels} pixels"
    elif few_photographs(pixels, images):
        return SHARPEST, f"{images:,} images are few: sharper codes (docs/LOG.md)"
    else:
        return EPSILON, "published"
    return SHARPEST, f"{reason}: at {EPSILON} the loss stays at ln K (docs/LOG.md)"


def _optimizer(draft: _Draft, facts: DatasetStats) -> None:
    steps = facts.images // draft["batch_size"] * draft["epochs"]
    short = steps < 50_000
    draft.fill(
        "optimizer",
        "adamw" if short else "larc",
        f"{steps:,} steps: " + ("too few for LARC" if short else "enough for LARC"),
    )
    lr, why = usual_lr(draft["optimizer"], draft["batch_size"])
    if draft["init"] != "none":
        lr, why = lr / CONTINUED_LR, f"{why}, / {CONTINUED_LR} from pretrained weights"
    draft.fill("base_lr", float(f"{lr:.3g}"), why)
    draft.fill("final_lr", float(f"{draft['base_lr'] / 1000:.6g}"), "base_lr / 1000, as published")
    draft.fill("start_warmup", 0.0, "from zero")
    draft.fill("wd", 1e-2 if draft["optimizer"] == "adamw" else 1e-6, "the optimizer's default")


def usual_lr(optimizer: str, batch: int) -> tuple[float, str]:
    """(learning rate, rule) of an optimizer at a batch size."""
    share = batch / 256
    return {
        "adamw": (2e-3 * share**0.5, "0.002 x sqrt(batch / 256)"),
        "larc": (0.6 * share, "0.6 x batch / 256, as published for small batches"),
        "sgd": (0.05 * share, "0.05 x batch / 256"),
    }[optimizer]


def _processes(draft: _Draft, facts: DatasetStats) -> None:
    shares = facts.processes * draft["accumulate"]
    if draft["batch_size"] % shares:
        raise UsageError(
            f"--batch-size {draft['batch_size']} cannot be divided equally among {facts.processes} "
            f"processes with --accumulate {draft['accumulate']}.",
            f"Use a multiple of {shares}.",
        )
    group = draft["syncbn_process_group_size"]
    if draft["sync_bn"] == "auto":
        alone = facts.processes == 1
        draft.values["sync_bn"] = "none" if alone else "all"
        if not alone:
            draft.reasons["sync_bn"] = "the same result with any number of processes"
    elif facts.processes == 1:
        draft.values["sync_bn"] = "none"
        draft.reasons["sync_bn"] = "a single process"
    elif draft["sync_bn"] == "groups" and facts.processes % group and group < facts.processes:
        raise UsageError(
            f"{facts.processes} processes cannot be split into groups of {group}.",
            f"Set --syncbn-process-group-size to a divisor of {facts.processes}.",
        )


def _watch(draft: _Draft, facts: DatasetStats) -> None:
    by_size = zip(draft["size_crops"], draft["nmb_crops"], strict=False)
    work = sum(count * size**2 for size, count in by_size)
    side = max(draft["image_size"], draft["size_crops"][0])
    schedule = EvaluationSchedule(
        facts.images, draft["epochs"], work, side, draft["init"] != "none"
    )
    draft.fill("watch_every", schedule.every, schedule.why)


def _consistent(s: PretrainSettings) -> None:
    lengths = {
        len(v or ()) for v in (s.nmb_crops, s.size_crops, s.min_scale_crops, s.max_scale_crops)
    }
    if len(lengths) != 1:
        raise UsageError(
            "--nmb-crops, --size-crops, --min-scale-crops and --max-scale-crops differ in length.",
            "Give one value of each per resolution.",
        )
    views = sum(s.nmb_crops or ())
    if views < 2 or not s.crops_for_assign or max(s.crops_for_assign) >= views:
        raise UsageError(
            f"--crops-for-assign {list(s.crops_for_assign)} does not fit {views} views.",
            "Use at least two views, and view indices below their number.",
        )
    if any(
        low > high
        for low, high in zip(s.min_scale_crops or (), s.max_scale_crops or (), strict=True)
    ):
        raise UsageError(
            "A value of --min-scale-crops is above its --max-scale-crops.", "Lower it."
        )
    if _int(s.warmup_epochs) > _int(s.epochs):
        raise UsageError(
            f"--warmup-epochs {s.warmup_epochs} exceeds --epochs {s.epochs}.", "Lower it."
        )
    if _int(s.queue_length) % _int(s.batch_size):
        raise UsageError(
            f"--queue-length {s.queue_length} is not a multiple of --batch-size {s.batch_size}.",
            f"Use {_int(s.queue_length) // _int(s.batch_size) * _int(s.batch_size)}.",
        )


def _int(value: int | None) -> int:
    return value or 0
