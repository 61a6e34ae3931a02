"""What was not asked for, derived from the images and the start, each value with its reason."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from unfreeze.data.intensity import parsed, reading
from unfreeze.data.loader import steps_of
from unfreeze.data.preprocess import Preprocess
from unfreeze.errors import UsageError
from unfreeze.settings.finetune import FinetuneSettings

DELICATE = ("alexnet", "vgg", "squeezenet")  # no normalisation: a usual rate makes them diverge
USUAL = 224  # pixels: larger images are made smaller when nothing else says how large
SMALLEST_MAP = 2
DECAY = 1e-4
ENOUGH_TO_CHOOSE = 50  # validation images; below, the best of many epochs is the luckiest
Sides = Callable[[int], tuple[int, int] | None]

# optimizer -> learning rate at a batch of 32: (new head alone, a trained network, from scratch)
RATES = {
    "sgd": (0.03, 0.01, 0.05),
    "adamw": (1e-3, 2e-4, 2e-3),
    "lars": (3.0, 3.0, 3.0),  # its trust ratio of 0.001 makes the steps of all layers small
}


@dataclass(frozen=True)
class Facts:
    """What the plan depends on beside the settings."""

    images: int  # to train on
    arch: str
    stem: str
    head_only: bool  # everything but the new head is frozen
    trained: bool  # the start has weights
    processes: int = 1  # that share a batch


@dataclass(frozen=True)
class Plan:
    """Settings without a gap, and why each derived value is what it is."""

    settings: FinetuneSettings
    preprocess: Preprocess
    reasons: dict[str, str]

    @property
    def batch_size(self) -> int:
        """Images a step."""
        return self.settings.batch_size or 1

    @property
    def lr(self) -> float:
        """Learning rate after the warm-up."""
        return self.settings.lr or 0.0

    @property
    def head_share(self) -> float:
        """The new head's learning rate as a share of `lr`."""
        given = self.settings.head_lr
        return 1.0 if given is None else given / self.lr

    @property
    def weight_decay(self) -> float:
        """Of matrices and kernels; biases and normalisation do not decay."""
        return self.settings.weight_decay or 0.0


def plan(s: FinetuneSettings, facts: Facts, preprocess: Preprocess) -> Plan:
    """Batch size, learning rate and input filled in; UsageError for contradictions."""
    reasons: dict[str, str] = {}
    batch = s.batch_size
    if batch is None:
        batch = usual_batch(facts.images)
        reasons["batch_size"] = f"{steps_of(facts.images, batch, drop_last=False)} steps per epoch"
        if batch % facts.processes:
            batch = facts.processes * -(-batch // facts.processes)
            reasons["batch_size"] += f", shared by {facts.processes} processes"
    lr = s.lr
    if lr is None:
        lr, reasons["lr"] = usual_lr(s.optimizer, batch, facts)
    elif s.find_lr:
        raise UsageError("--find-lr looks for what --lr gives.", "Leave one of them out.")
    if s.head_lr is not None and not lr:
        raise UsageError(
            "--head-lr is a share of --lr, which is 0.", "Use --freeze all, with --lr alone."
        )
    if s.warmup_epochs > s.epochs:
        raise UsageError(
            f"--warmup-epochs {s.warmup_epochs} is more than --epochs {s.epochs}.", "Lower it."
        )
    _balanced_once(s)
    decay = s.weight_decay
    if decay is None:
        decay, reasons["weight_decay"] = DECAY, "default"
    rule, channels = parsed(preprocess.intensity)
    filled = replace(
        s,
        range=s.range if rule == "auto" else rule,
        channels=channels,
        arch=facts.arch,
        stem=facts.stem,
        image_size=preprocess.image_size,
        mean=tuple(preprocess.mean),
        std=tuple(preprocess.std),
        batch_size=batch,
        lr=lr,
        weight_decay=decay,
    )
    return Plan(filled, preprocess, reasons)


def selected(chosen: Plan, held_out: int) -> Plan:
    """The plan with what picks the epoch, by the number of validation images."""
    s = chosen.settings
    if s.select is not None:
        return chosen
    reasons = dict(chosen.reasons)
    if s.patience or held_out >= ENOUGH_TO_CHOOSE or not held_out:
        select = "accuracy"
        if s.patience and held_out < ENOUGH_TO_CHOOSE:
            reasons["select"] = "--patience is given"
    else:
        select = "last"
        reasons["select"] = (
            f"{held_out} validation images cannot choose an epoch (from {ENOUGH_TO_CHOOSE} on they "
            "do): the last one is kept, and they only measure"
        )
    return replace(chosen, settings=replace(s, select=select), reasons=reasons)


def _balanced_once(s: FinetuneSettings) -> None:
    if s.sampling == "balanced" and s.class_weights != "none":
        raise UsageError(
            "--sampling balanced and --class-weights would both favour small classes.",
            "Give one of them.",
        )


def usual_batch(images: int) -> int:
    """A power of two: about sixteen steps an epoch, 4 at least, 32 to 128 at most by size."""
    most = 32 if images < 5_000 else 64 if images < 20_000 else 128
    sixteenth = 1 << max(2, (images // 16).bit_length() - 1)
    return min(most, sixteenth)


def usual_lr(optimizer: str, batch: int, facts: Facts) -> tuple[float, str]:
    """(rate, reason): by what is trained, scaled with the batch, lower without normalisation."""
    head, trained, scratch = RATES[optimizer]
    base, what = (head, "a new head") if facts.head_only else (trained, "fine-tuning")
    if not facts.trained:
        base, what = scratch, "training from scratch"
    share = batch / 32
    scaled = base * (share**0.5 if optimizer == "adamw" else share)
    how = "scaled with the square root of batch / 32" if optimizer == "adamw" else "x batch / 32"
    reason = f"{base:g} for {what} with {optimizer}, {how}"
    # a head alone follows the scale of its features, once that is measured
    if not facts.head_only and any(name in facts.arch for name in DELICATE):
        scaled, reason = scaled / 10, f"{reason}, / 10 without normalisation layers"
    return float(f"{scaled:.3g}"), reason


def choose_preprocess(
    s: FinetuneSettings, side: int, wants: Preprocess | None, sides: Sides
) -> tuple[Preprocess, dict[str, str]]:
    """How images of `side` pixels enter a network whose last map is `sides(image_size)`.

    Pretrained weights get the size they were trained with (small images are enlarged); from
    scratch the images keep theirs, as far as the last map stays 2x2. Below that it is refused
    unless `--image-size` asks for it.
    """
    if s.image_size is not None:
        chosen, why = _sized(s.image_size, wants), "given"
    elif wants is not None:
        chosen, why = wants, f"what the weights were trained with; the images have {side} pixels"
    else:
        chosen, why = _own(side, sides)
    found = sides(chosen.image_size)
    last = f"{found[0]}x{found[1]}" if found else "none"
    if found and min(found) < SMALLEST_MAP:
        if s.image_size is None:
            raise UsageError(
                f"Images of {chosen.image_size} pixels leave a last feature map of {last}.",
                "Use --image-size with a larger number (or with this one, to insist), or "
                "--stem small.",
            )
        why += f", though only {last} is left of the layout"
    reasons = {"image_size": why, "last_map": f"{last} before pooling"}
    if s.mean is None or s.std is None:
        reasons["mean"] = "what the weights were trained with" if wants else "ImageNet's"
    chosen = replace(
        chosen,
        mean=s.mean or chosen.mean,
        std=s.std or chosen.std,
        intensity=reading(s.range, s.channels, chosen.intensity),
    )
    _three(chosen)
    return chosen, reasons


def _sized(size: int, wants: Preprocess | None) -> Preprocess:
    if wants is None:
        return _plain(size)
    return replace(wants, image_size=size, resize=round(size * wants.resize / wants.image_size))


def _plain(size: int) -> Preprocess:
    # images are shown whole when small, with the usual margin cut off when large
    return Preprocess(size, size if size <= 64 else round(size * 256 / 224))


def _own(side: int, sides: Sides) -> tuple[Preprocess, str]:
    own = min(USUAL, max(8, 8 * round(side / 8)))
    for size, why in (
        (own, f"the images have {side} pixels"),
        *((own * times, f"images of {side} pixels, enlarged: the last map must be 2x2 at least")
          for times in (2, 4, 8)),
        (USUAL, "what this kind of network needs"),
    ):  # fmt: skip
        try:
            found = sides(size)
        except UsageError:
            continue
        if found is None or min(found) >= SMALLEST_MAP:
            return _plain(size), why
    return _plain(own), f"the images have {side} pixels"


def _three(chosen: Preprocess) -> None:
    for name, values in (("mean", chosen.mean), ("std", chosen.std)):
        if len(values) != 3:
            raise UsageError(f"--{name} takes three numbers, not {len(values)}.", "Red green blue.")
    if min(chosen.std) <= 0:
        raise UsageError("--std must be above 0.", "Leave it out for what the weights want.")
