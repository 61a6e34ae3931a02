"""Resolves the settings of fine-tuning: derived values, each with its reason."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from torch import nn

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.data.images.intensity import format_intensity, parse_intensity
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.loading.loader import steps_per_epoch
from unfreeze.data.loading.sample import DatasetSample
from unfreeze.errors import UsageError
from unfreeze.models.head import find_head
from unfreeze.models.shape_trace import Shape, trace_forward
from unfreeze.models.stages import stages

DELICATE = (
    "alexnet",
    "vgg",
    "squeezenet",
)  # no normalisation layers: the usual learning rate diverges
USUAL = 224  # pixels; default input size of larger images
SMALLEST_MAP = 2
DECAY = 1e-4
TEXT_DECAY = 1e-2
TEXT_WARMUP = 0.06  # share of the steps
ENOUGH_TO_CHOOSE = 50  # validation images; with fewer, the best epoch is mostly noise
ENOUGH_MAPS = 10  # the same for segmentation, where an image holds thousands of labels
Sides = Callable[[int], tuple[int, int] | None]

# optimizer -> learning rate at batch size 32: (head only, fine-tuning, from scratch, LoRA)
RATES = {
    "sgd": (0.03, 0.01, 0.02, 0.1),
    "adamw": (1e-3, 5e-4, 1e-3, 2e-3),
    "lars": (3.0, 3.0, 3.0, 30.0),  # its trust ratio of 0.001 scales all steps down
}
EPOCHS, TEXT_EPOCHS = 30, 4
TEXT_RATES = (5e-5, 3e-4, 5e-4)  # of AdamW for text encoders: fine-tuning, from scratch, LoRA
# of AdamW for segmentation: decoder, encoder; at any batch size, because an image holds many labels
MASK_RATES = (1e-3, 2e-4)


@dataclass(frozen=True)
class FinetuneFacts:
    """Inputs of the plan besides the settings."""

    images: int  # training images
    arch: str
    stem: str
    head_only: bool  # only the new head is trained
    trained: bool  # the network starts from trained weights
    batch_norm: bool = False  # it has batch normalisation
    processes: int = 1  # data-parallel processes
    texts: bool = False  # the samples are texts
    masks: bool = False  # the labels are masks
    lora: bool = False  # adapters are trained instead of the backbone
    lr_scale: float = 1.0  # factor of the task on the default learning rates of SGD


@dataclass(frozen=True)
class FinetuneRecipe:
    """Complete settings, and the reason of each derived value."""

    settings: FinetuneSettings
    preprocess: Preprocess
    reasons: dict[str, str]

    @property
    def batch_size(self) -> int:
        """Images per step."""
        return self.settings.batch_size or 1

    @property
    def lr(self) -> float:
        """Learning rate after warm-up."""
        return self.settings.lr or 0.0

    @property
    def head_share(self) -> float:
        """The new head's learning rate as a factor on `lr`."""
        given = self.settings.head_lr
        return 1.0 if given is None else given / self.lr

    @property
    def weight_decay(self) -> float:
        """Weight decay of weight matrices; biases and normalisation layers have none."""
        return self.settings.weight_decay or 0.0


def with_defaults(s: FinetuneSettings, *, texts: bool = False) -> FinetuneSettings:
    """The settings with the defaults that depend on the kind of samples."""
    epochs = s.epochs or (TEXT_EPOCHS if texts else EPOCHS)
    augment = "none" if texts else s.augment
    return replace(s, epochs=epochs, augment=augment)


def usual_optimizer(facts: FinetuneFacts) -> str:
    """The optimizer of `--optimizer auto`."""
    if facts.texts or facts.masks or facts.lora:
        return "adamw"
    if facts.head_only:
        return "sgd"
    # other trained networks, such as vision transformers, need rates of their own with AdamW
    return "adamw" if facts.batch_norm or not facts.trained else "sgd"


def plan(s: FinetuneSettings, facts: FinetuneFacts, preprocess: Preprocess) -> FinetuneRecipe:
    """Fill in batch size, learning rate and preprocessing; UsageError for contradictions."""
    s, chosen = with_defaults(s, texts=facts.texts), s.optimizer == "auto"
    if chosen:
        s = replace(s, optimizer=usual_optimizer(facts))
    reasons: dict[str, str] = {}
    batch = s.batch_size or _derived_batch(facts, reasons)
    lr = s.lr
    if lr is None and facts.masks and s.optimizer == "adamw":
        s, reasons = _with_mask_rates(s, facts, reasons)
        lr = s.lr or 0.0
    elif lr is None:
        lr, reasons["lr"] = usual_lr(s.optimizer, batch, facts)
    elif s.find_lr:
        raise UsageError("--find-lr and --lr exclude each other.", "Leave out one of them.")
    elif chosen and not facts.masks:
        # a rate of SGD is given by habit, and is far too high for AdamW
        rate, what = usual_lr(s.optimizer, batch, facts)
        reasons["optimizer"] = f"default; its usual learning rate would be {rate:g}: {what}"
    _check_rates(s, lr)
    _check_balancing(s)
    decay = s.weight_decay
    if decay is None:
        decay, reasons["weight_decay"] = DECAY, "default"
        if facts.texts and not facts.head_only:
            decay, reasons["weight_decay"] = TEXT_DECAY, "usual for text encoders"
    if preprocess.fit == "text":
        if not facts.head_only:
            reasons["warmup_epochs"] = f"and {TEXT_WARMUP:.0%} of all steps, usual for transformers"
        filled = replace(
            s,
            arch=facts.arch,
            max_length=preprocess.image_size,
            batch_size=batch,
            lr=lr,
            weight_decay=decay,
        )
        return FinetuneRecipe(filled, preprocess, reasons)
    rule, channels = parse_intensity(preprocess.intensity)
    filled = replace(
        s,
        range=s.range if rule == "auto" else rule,
        channels=channels,
        arch=facts.arch,
        stem=facts.stem,
        image_size=preprocess.image_size,
        fit=preprocess.fit,
        mean=tuple(preprocess.mean),
        std=tuple(preprocess.std),
        batch_size=batch,
        lr=lr,
        weight_decay=decay,
    )
    return FinetuneRecipe(filled, preprocess, reasons)


def _with_mask_rates(
    s: FinetuneSettings, facts: FinetuneFacts, reasons: dict[str, str]
) -> tuple[FinetuneSettings, dict[str, str]]:
    """The settings with the usual learning rates for segmentation, and why."""
    decoder, encoder = MASK_RATES
    if facts.head_only or not facts.trained:
        what = "a new decoder" if facts.trained else "training from scratch"
        return replace(s, lr=decoder), {**reasons, "lr": f"for {what} with adamw"}
    why = {"lr": "for a trained encoder with adamw"}
    if s.head_lr is None:
        s = replace(s, head_lr=decoder)
        why["head_lr"] = "for the new decoder"
    return replace(s, lr=encoder), {**reasons, **why}


def with_selection(
    chosen: FinetuneRecipe,
    held_out: int,
    metric: str = "accuracy",
    enough: int = ENOUGH_TO_CHOOSE,
) -> FinetuneRecipe:
    """The plan with --select: `metric`, or the last epoch below `enough` validation images."""
    s = chosen.settings
    if s.select is not None:
        return chosen
    reasons = dict(chosen.reasons)
    if s.patience or held_out >= enough or not held_out:
        select = metric
        if s.patience and held_out < enough:
            reasons["select"] = "--patience is given"
    else:
        select = "last"
        reasons["select"] = (
            f"{held_out} validation images are too few to select an epoch (at least {enough}): the "
            "last one is used, and they only measure it"
        )
    return replace(chosen, settings=replace(s, select=select), reasons=reasons)


def _check_rates(s: FinetuneSettings, lr: float) -> None:
    if s.head_lr is not None and not lr:
        raise UsageError(
            "--head-lr needs --lr above 0.", "Raise --lr, or train only the head with --freeze all."
        )
    if s.warmup_epochs > (s.epochs or 0):
        raise UsageError(
            f"--warmup-epochs {s.warmup_epochs} is more than --epochs {s.epochs}.",
            "Lower --warmup-epochs.",
        )


def _check_balancing(s: FinetuneSettings) -> None:
    if s.sampling == "balanced" and s.class_weights != "none":
        raise UsageError(
            "--sampling balanced and --class-weights both correct class imbalance.",
            "Use one of them.",
        )


def usual_batch(images: int) -> int:
    """A power of two for about 16 steps per epoch, from 4 to 32, 64 or 128 by dataset size."""
    most = 32 if images < 5_000 else 64 if images < 20_000 else 128
    sixteenth = 1 << max(2, (images // 16).bit_length() - 1)
    return min(most, sixteenth)


def _derived_batch(facts: FinetuneFacts, reasons: dict[str, str]) -> int:
    """The batch size by the number of images, a multiple of the processes; adds its reason."""
    batch = usual_batch(facts.images)
    steps = steps_per_epoch(facts.images, batch, drop_last=False)
    reasons["batch_size"] = f"{steps} steps per epoch"
    if batch % facts.processes:
        batch = facts.processes * -(-batch // facts.processes)
        reasons["batch_size"] += f", shared by {facts.processes} processes"
    return batch


def usual_lr(optimizer: str, batch: int, facts: FinetuneFacts) -> tuple[float, str]:
    """(learning rate, reason): by what is trained, scaled with the batch size."""
    head, trained, scratch, lora = RATES[optimizer]
    if facts.texts and optimizer == "adamw":
        trained, scratch, lora = TEXT_RATES
    base, what = (head, "a new head") if facts.head_only else (trained, "fine-tuning")
    if facts.lora:
        base, what = lora, "low-rank adapters"
    elif not facts.trained and not facts.head_only:
        base, what = scratch, "training from scratch"
    ratio = batch / 32
    scaled = base * (ratio**0.5 if optimizer == "adamw" else ratio)
    how = "x sqrt(batch / 32)" if optimizer == "adamw" else "x batch / 32"
    reason = f"{base:g} for {what} with {optimizer}, {how}"
    if facts.lr_scale != 1 and optimizer == "sgd":
        scaled, reason = scaled * facts.lr_scale, f"{reason}, x {facts.lr_scale:g} of the task"
    # the rate of a head alone is adapted to the scale of its features later
    if not facts.head_only and any(name in facts.arch for name in DELICATE):
        scaled, reason = scaled / 10, f"{reason}, / 10 without normalisation layers"
    return float(f"{scaled:.3g}"), reason


def choose_preprocess(
    s: FinetuneSettings, sample: DatasetSample, wants: Preprocess | None, sides: Sides
) -> tuple[Preprocess, dict[str, str]]:
    """Preprocessing of images such as `sample`; `sides(size)`: the network's last feature map.

    Pretrained weights get the input size they were trained with (small images are enlarged). From
    scratch, images keep their size if the last feature map has at least 2x2 positions. A smaller
    map is a UsageError unless `--image-size` is given.
    """
    side = sample.side
    if s.image_size is not None:
        preprocess, why = _sized(s.image_size, wants), "given"
    elif wants is not None:
        preprocess, why = wants, f"input size of the weights; the images have {side} pixels"
    else:
        preprocess, why = _from_images(side, sides)
    last_map = sides(preprocess.image_size)
    last = f"{last_map[0]}x{last_map[1]}" if last_map else "none"
    if last_map and min(last_map) < SMALLEST_MAP:
        if s.image_size is None:
            raise UsageError(
                f"Images of {preprocess.image_size} pixels give a last feature map of only {last}.",
                f"Use a larger --image-size or --stem small, or force it with --image-size "
                f"{preprocess.image_size}.",
            )
        why += f", although the last feature map is only {last}"
    reasons = {"image_size": why, "last_map": f"{last} before pooling"}
    if s.mean is None or s.std is None:
        reasons["mean"] = "those of the weights" if wants else "ImageNet's"
    fit, reason = _fit(s, sample, preprocess)
    reasons |= {"fit": reason} if reason else {}
    preprocess = replace(
        preprocess,
        fit=fit,
        mean=s.mean or preprocess.mean,
        std=s.std or preprocess.std,
        intensity=format_intensity(s.range, s.channels, preprocess.intensity),
    )
    check_normalisation(preprocess)
    return preprocess, reasons


LONG_SHARE = 0.5  # of the images; from it on, images are not cropped


def _fit(s: FinetuneSettings, sample: DatasetSample, preprocess: Preprocess) -> tuple[str, str]:
    """(how images come to a square, reason): whole if many are much longer than wide."""
    if s.fit is not None:
        return s.fit, ""
    long = sample.cropped
    if preprocess.fit != "crop" or long is None or long.count < LONG_SHARE * long.images:
        return preprocess.fit, ""
    share = f"{100 * long.count / long.images:.0f} %"
    return "squash", f"the whole image: a crop would leave out half and more of {share} of them"


TILES_FROM = 1024  # pixels of the shorter side; whole images of this size would lose detail
LARGEST_MAP = 384  # pixels; default of the shorter side of a segmentation network's input
STRIDE = 32  # of the encoders: sides of their input are multiples of it


def preprocess_of_maps(
    s: FinetuneSettings, sample: DatasetSample, wants: Preprocess | None
) -> tuple[Preprocess, dict[str, str]]:
    """Preprocessing for a segmentation network: whole images at their usual aspect ratio.

    `--image-size` is the shorter side. Both sides are rounded to multiples of STRIDE.
    """
    shorter, longer = sample.side, sample.longer_side
    size = s.image_size or min(shorter, LARGEST_MAP)
    fit = s.fit or ("squash" if s.image_size or shorter < TILES_FROM else "tile")
    if fit == "tile":
        longer = shorter  # tiles are square
    sides = [max(STRIDE, STRIDE * round(side / STRIDE)) for side in (size, size * longer / shorter)]
    height, width = sides if sample.landscape else reversed(sides)
    preprocess = replace(
        wants or _plain(height),
        image_size=height,
        resize=height,
        width=width,
        fit=fit,
        mean=s.mean or (wants or _plain(height)).mean,
        std=s.std or (wants or _plain(height)).std,
        intensity=format_intensity(s.range, s.channels, (wants or _plain(height)).intensity),
    )
    check_normalisation(preprocess)
    what = "tiles" if fit == "tile" else "whole images"
    why = f"{what} of {height}x{width} pixels (multiples of {STRIDE}) from images of "
    why += f"{shorter}x{sample.longer_side}"
    reasons = {"image_size": f"{why}, given" if s.image_size else why}
    if fit == "tile" and s.fit is None:
        reasons["fit"] = "tiles of large images; --fit squash shrinks each to --image-size"
    if s.mean is None or s.std is None:
        reasons["mean"] = "those of the weights" if wants else "ImageNet's"
    return preprocess, reasons


def _sized(size: int, wants: Preprocess | None) -> Preprocess:
    if wants is None:
        return _plain(size)
    return replace(wants, image_size=size, resize=round(size * wants.resize / wants.image_size))


def _plain(size: int) -> Preprocess:
    # small images are used completely, large ones lose the usual margin (256 to 224)
    return Preprocess(size, size if size <= 64 else round(size * 256 / 224))


def _from_images(side: int, sides: Sides) -> tuple[Preprocess, str]:
    rounded = min(USUAL, max(8, 8 * round(side / 8)))
    for size, why in (
        (rounded, f"the images have {side} pixels"),
        *((rounded * k, f"{side} pixels, enlarged: the last feature map must be at least 2x2")
          for k in (2, 4, 8)),
        (USUAL, "the input size of this architecture"),
    ):  # fmt: skip
        try:
            last_map = sides(size)
        except UsageError:
            continue
        if last_map is None or min(last_map) >= SMALLEST_MAP:
            return _plain(size), why
    return _plain(rounded), f"the images have {side} pixels"


def check_normalisation(preprocess: Preprocess) -> None:
    """UsageError for a mean or standard deviation that is not of three channels."""
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(values) != 3:
            raise UsageError(
                f"--{name} takes three numbers, got {len(values)}.",
                "Give one number each for red, green and blue.",
            )
    if min(preprocess.std) <= 0:
        raise UsageError("--std must be above 0.", "Leave it out to use the weights' own.")


def last_feature_map_size(model: nn.Module, size: int) -> tuple[int, int] | None:
    """(height, width) of the last map before global pooling, for `size` x `size` images.

    None if there is no feature map. For vision transformers it is the patch grid. Raises UsageError
    if the network does not accept images of this size.
    """
    traced, head = trace_forward(model, (size, size)), find_head(model)
    last: Shape | None = None
    pooled: Shape | None = None
    for name in sorted(traced.order, key=traced.order.__getitem__):
        module, shape = model.get_submodule(name), traced.shapes.get(name, ())
        if name == head:
            break
        if any(True for _ in module.children()):
            continue
        if isinstance(module, nn.Identity) or "Norm" in type(module).__name__:
            continue  # they keep the shape; inside attention they get [B, heads, tokens, width]
        if "Adaptive" in type(module).__name__:
            pooled = last  # the last such layer is the global pooling: take its input
        elif len(shape) == 4:
            last = shape
    shape_before = pooled or last
    return None if shape_before is None else _sides(shape_before)


def _sides(shape: Shape) -> tuple[int, int]:
    _, a, b, c = shape
    channels_last = a == b != c  # Swin and similar networks use [B, H, W, C]
    return (a, b) if channels_last else (b, c)


def layer_lr_scales(
    model: nn.Module, decay: float, head: Collection[str], *, head_share: float = 1.0
) -> dict[str, float]:
    """Parameter -> factor on the learning rate: `decay` for the last stage, `decay`**2 below, ...

    Howard and Ruder, "Universal language model fine-tuning" (arXiv 1801.06146), section 3.2, with
    the stages listed by `summary`. `head` has the factor `head_share`. Empty if all factors are 1.
    """
    scales: dict[str, float] = {} if head_share == 1 else dict.fromkeys(head, head_share)
    if decay == 1:
        return scales
    for distance, stage in enumerate(reversed(stages(model)), 1):
        for name, _ in model.named_parameters():
            if stage.owns(name):
                scales[name] = decay**distance
    return scales | dict.fromkeys(head, head_share)
