"""Whether features are kept: what it takes, what it spares, decided with reasons before a run."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from unfreeze.data.room import SPARE_BYTES
from unfreeze.errors import UsageError
from unfreeze.runtime.console import worded
from unfreeze.runtime.devices import autocast
from unfreeze.settings.finetune import FinetuneSettings
from unfreeze.transfer.border import Border, NoBorder, find_border, work
from unfreeze.transfer.freeze import FreezeSchedule
from unfreeze.transfer.kept import free_bytes, kept_folder
from unfreeze.transfer.plan import Plan
from unfreeze.transfer.stretches import ACTIVATIONS, FEATURES, Stretch, stretches, wanted

VIEWS = 4  # of each image that `--cache auto` keeps where views are random
WORTH = 1.5  # times less arithmetic, from which `auto` keeps activations
BACKWARD = 2  # a backward pass costs about two forward ones


@dataclass(frozen=True)
class Stored:
    """What would be kept of one stretch, and the multiplications of its passes.

    `ratio`: how many times less arithmetic the stretch takes with it.
    """

    stretch: Stretch
    border: Border
    passes: int
    image_bytes: int
    bytes: int
    work: float
    ratio: float

    @property
    def text(self) -> str:
        """For people: what, how much, and what for."""
        shape = "x".join(map(str, self.border.shape))
        return (
            f"{self.border.name} ({shape}), {self.image_bytes / 1024:,.1f} KiB an image and "
            f"view, {self.bytes / 2**30:.2f} GiB in {kept_folder()}; the frozen layers compute "
            f"{worded(self.passes, 'pass', 'passes')} instead of {self.stretch.epochs}, which is "
            f"{self.ratio:.1f} times less work"
        )


@dataclass(frozen=True)
class Decision:
    """`mode`: off, FEATURES or ACTIVATIONS; `views` of each image; why."""

    mode: str
    views: int | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    learner: str | None = None  # the Linear that alone learns in all epochs, where there is one
    work: float = 0.0  # multiplications that computing it takes


@dataclass(frozen=True)
class Case:
    """What a decision depends on beside the settings."""

    network: nn.Module
    schedule: FreezeSchedule
    head: Collection[str]
    images: int
    held_out: int


def check_asked(
    s: FinetuneSettings,
    network: nn.Module,
    schedule: FreezeSchedule,
    head: Collection[str],
    side: int,
) -> None:
    """UsageError where what `--cache` and `--cache-views` ask for cannot be done.

    Before anything is written: it needs the network and the size of its images only.
    """
    if s.cache == "off" and s.cache_views is not None:
        raise UsageError("--cache-views has no use with --cache off.", "Leave one out.")
    if s.cache in ("auto", "off"):
        return
    if s.mixup or s.cutmix:
        raise UsageError(f"--cache {s.cache}: {_MIXED}.", _INSTEAD)
    chosen = [p for p in stretches(network, schedule, s.epochs, head) if wanted(s.cache, p)]
    if not chosen:
        raise UsageError(f"--cache {s.cache}: {_NOTHING[s.cache]}.", _INSTEAD)
    try:
        for part in chosen:
            find_border(network, part.frozen, side)
    except NoBorder as reason:
        raise UsageError(f"--cache {s.cache}: {reason}.", _INSTEAD) from reason


def decide(s: FinetuneSettings, case: Case) -> Decision:
    """What `--cache` and `--cache-views` come to; `s` is resolved but for them."""
    if s.cache == "off":
        return Decision("off", reasons={"cache": "given"})
    if s.mixup or s.cutmix:
        return Decision("off", reasons={"cache": _MIXED})
    parts = stretches(case.network, case.schedule, s.epochs, case.head)
    # where only the head learns, what comes before it is kept, by whichever name
    modes = (FEATURES, ACTIVATIONS) if s.cache == "auto" else (s.cache,)
    mode = next((m for m in modes if any(wanted(m, part) for part in parts)), modes[-1])
    chosen = [part for part in parts if wanted(mode, part)]
    found = _with_mode(s, case, mode, chosen) if chosen else _NOTHING[mode]
    if isinstance(found, Decision):
        return found
    unused = "" if s.cache_views is None else "--cache-views is not used: "
    return Decision("off", reasons={"cache": unused + found})


_NOTHING = {
    FEATURES: "in no epoch is everything but the head frozen (--freeze all)",
    ACTIVATIONS: "nothing is frozen",
}
_MIXED = "--mixup and --cutmix make new images in every step"
_INSTEAD = "Use --cache auto or off."


def _with_mode(
    s: FinetuneSettings, case: Case, mode: str, parts: Sequence[Stretch]
) -> Decision | str:
    """The decision, or why not."""
    plain = s.augment == "none"
    views = s.cache_views or (1 if plain else VIEWS)
    try:
        stored = [_stored(s, case, part, 1 if plain else views) for part in parts]
    except NoBorder as reason:
        return str(reason)
    if s.cache == "auto":
        doubt = _doubt(s, mode, stored, plain=plain)
        if doubt:
            return doubt
    limit = f"all cached features take at most {s.cache_budget:g} GiB (--cache-budget)"
    reasons = {"cache": f"{'; then '.join(part.text for part in stored)}; {limit}"}
    if plain:
        views = 1
        reasons["cache_views"] = "no augmentation"
    elif views == 1:
        reasons["cache_views"] = reasons["augment"] = "one view is cached: no augmentation"
    else:
        reasons["cache_views"] = (
            f"random views of each image, used in turn, instead of {s.epochs} different ones; "
            "--cache-views N sets how many, --cache off draws new ones each epoch"
        )
    whole = len(stored) == 1 and stored[0].stretch.epochs == s.epochs
    learner = stored[0].border.learner if whole else None
    return Decision(mode, views, reasons, learner, sum(part.work for part in stored))


def _doubt(s: FinetuneSettings, mode: str, stored: Sequence[Stored], *, plain: bool) -> str:
    """Why `auto` keeps nothing; "" where it does."""
    needed = sum(part.bytes for part in stored)
    if all(part.passes >= part.stretch.epochs for part in stored):
        return f"{s.epochs} epochs need no fewer passes through the frozen layers"
    if needed > s.cache_budget * 2**30:
        return f"{needed / 2**30:.1f} GiB are more than --cache-budget {s.cache_budget:g}"
    if needed + SPARE_BYTES > free_bytes():
        return f"{needed / 2**30:.1f} GiB do not fit the disk of {kept_folder()}"
    if mode == ACTIVATIONS and not plain and s.cache_views is None:
        return (
            "with many layers training, new random views each epoch are worth more; "
            f"--cache activations --cache-views {VIEWS} would cache {stored[0].text}"
        )
    if max(part.ratio for part in stored) < WORTH:
        return f"it would save too little: {stored[0].text}"
    return ""


def _stored(s: FinetuneSettings, case: Case, part: Stretch, views: int) -> Stored:
    side = s.image_size or 0
    border = find_border(case.network, part.frozen, side)
    before, after = work(case.network, border, side)
    passes = len(part.views(views))
    image = _image_bytes(case.network, border, side, s.precision)
    full = _image_bytes(case.network, border, side, "fp32")  # validation is in full precision
    epoch = before + (1 + BACKWARD) * after
    ratio = part.epochs * epoch / (passes * before + part.epochs * (1 + BACKWARD) * after)
    total = image * passes * case.images + full * case.held_out
    return Stored(part, border, passes, image, total, passes * before * case.images, ratio)


def _image_bytes(network: nn.Module, border: Border, side: int, precision: str) -> int:
    device = next(network.parameters()).device
    two = torch.zeros(2, 3, side, side, device=device)
    arithmetic = "bf16" if precision == "fp16" and device.type == "cpu" else precision
    with torch.no_grad(), autocast(device, arithmetic):
        return border.before(two)[0].nbytes


def settled(chosen: Plan, decision: Decision) -> Plan:
    """The plan with the decision in it."""
    s = chosen.settings
    augment = "none" if decision.views == 1 else s.augment
    filled = replace(s, cache=decision.mode, cache_views=decision.views, augment=augment)
    return replace(chosen, settings=filled, reasons={**chosen.reasons, **decision.reasons})
