"""Decides before a run whether to cache features: cost, savings and reasons."""

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

VIEWS = 4  # cached per image by `--cache auto` if views are random
WORTH = 1.5  # smallest speed-up in FLOPs for which `auto` caches features
BACKWARD = 2  # cost of a backward pass in forward passes, about


@dataclass(frozen=True)
class Stored:
    """The feature cache of one phase; `bytes`: its size, `work`: FLOPs to compute it.

    `ratio`: FLOPs of the phase without the cache, divided by those with it.
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
        """Tensor, size and speed-up, for people."""
        shape = "x".join(map(str, self.border.shape))
        return (
            f"{self.border.name} ({shape}), {self.image_bytes / 1024:,.1f} KiB per image and "
            f"view, {self.bytes / 2**30:.2f} GiB in {kept_folder()}; the frozen layers compute "
            f"{worded(self.passes, 'pass', 'passes')} instead of {self.stretch.epochs}, which is "
            f"{self.ratio:.1f} times less work"
        )


@dataclass(frozen=True)
class Decision:
    """`mode`: off, FEATURES or ACTIVATIONS; `views` per image; `reasons` by setting."""

    mode: str
    views: int | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    learner: str | None = None  # the only trainable layer in all epochs, if it is a Linear
    work: float = 0.0  # FLOPs to compute the features


@dataclass(frozen=True)
class Case:
    """Inputs of the decision besides the settings."""

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
    """Raise UsageError if `--cache` and `--cache-views` are not possible.

    Needs only the network and its input size, so it can run before anything is written.
    """
    if s.cache == "off" and s.cache_views is not None:
        raise UsageError("--cache-views has no effect with --cache off.", "Leave out one of them.")
    if s.cache in ("auto", "off"):
        return
    if s.mixup or s.cutmix:
        raise UsageError(f"--cache {s.cache}: {_MIXED}.", _INSTEAD)
    phases = [p for p in stretches(network, schedule, s.epochs, head) if wanted(s.cache, p)]
    if not phases:
        raise UsageError(f"--cache {s.cache}: {_NOTHING[s.cache]}.", _INSTEAD)
    try:
        for phase in phases:
            find_border(network, phase.frozen, side)
    except NoBorder as reason:
        raise UsageError(f"--cache {s.cache}: {reason}.", _INSTEAD) from reason


def decide(s: FinetuneSettings, case: Case) -> Decision:
    """Resolve `--cache` and `--cache-views`; `s` is resolved except for them."""
    if s.cache == "off":
        return Decision("off", reasons={"cache": "given"})
    if s.mixup or s.cutmix:
        return Decision("off", reasons={"cache": _MIXED})
    phases = stretches(case.network, case.schedule, s.epochs, case.head)
    # if only the head is trained, both modes cache its input
    modes = (FEATURES, ACTIVATIONS) if s.cache == "auto" else (s.cache,)
    mode = next((m for m in modes if any(wanted(m, phase) for phase in phases)), modes[-1])
    cached = [phase for phase in phases if wanted(mode, phase)]
    decision = _with_mode(s, case, mode, cached) if cached else _NOTHING[mode]
    if isinstance(decision, Decision):
        return decision
    unused = "" if s.cache_views is None else "--cache-views is not used: "
    return Decision("off", reasons={"cache": unused + decision})


_NOTHING = {
    FEATURES: "no epoch trains only the head (--freeze all)",
    ACTIVATIONS: "nothing is frozen",
}
_MIXED = "--mixup and --cutmix create new images in each step"
_INSTEAD = "Use --cache auto or off."


def _with_mode(
    s: FinetuneSettings, case: Case, mode: str, phases: Sequence[Stretch]
) -> Decision | str:
    """The decision, or the reason against a cache."""
    plain = s.augment == "none"
    views = s.cache_views or (1 if plain else VIEWS)
    try:
        stored = [_stored(s, case, phase, 1 if plain else views) for phase in phases]
    except NoBorder as reason:
        return str(reason)
    if s.cache == "auto":
        objection = _objection(s, mode, stored, plain=plain)
        if objection:
            return objection
    limit = f"at most {s.cache_budget:g} GiB for all feature caches (--cache-budget)"
    reasons = {"cache": f"{'; then '.join(part.text for part in stored)}; {limit}"}
    if plain:
        views = 1
        reasons["cache_views"] = "no augmentation"
    elif views == 1:
        reasons["cache_views"] = reasons["augment"] = "one cached view per image: no augmentation"
    else:
        reasons["cache_views"] = (
            f"random views per image, used in turn, instead of {s.epochs} different ones; "
            "--cache-views N changes the number, --cache off draws a new view each epoch"
        )
    all_epochs = len(stored) == 1 and stored[0].stretch.epochs == s.epochs
    learner = stored[0].border.learner if all_epochs else None
    return Decision(mode, views, reasons, learner, sum(part.work for part in stored))


def _objection(s: FinetuneSettings, mode: str, stored: Sequence[Stored], *, plain: bool) -> str:
    """Why `--cache auto` caches nothing; "" if it does."""
    needed = sum(part.bytes for part in stored)
    if all(part.passes >= part.stretch.epochs for part in stored):
        return f"with {s.epochs} epochs it would save no passes through the frozen layers"
    if needed > s.cache_budget * 2**30:
        return f"{needed / 2**30:.1f} GiB exceed --cache-budget {s.cache_budget:g}"
    if needed + SPARE_BYTES > free_bytes():
        return f"{needed / 2**30:.1f} GiB do not fit on the disk of {kept_folder()}"
    if mode == ACTIVATIONS and not plain and s.cache_views is None:
        return (
            "with many trainable layers, new random views each epoch are worth more; "
            f"--cache activations --cache-views {VIEWS} would cache {stored[0].text}"
        )
    if max(part.ratio for part in stored) < WORTH:
        return f"it would save too little: {stored[0].text}"
    return ""


def _stored(s: FinetuneSettings, case: Case, phase: Stretch, views: int) -> Stored:
    side = s.image_size or 0
    border = find_border(case.network, phase.frozen, side)
    before, after = work(case.network, border, side)
    passes = len(phase.views(views))
    image = _image_bytes(case.network, border, side, s.precision)
    full = _image_bytes(case.network, border, side, "fp32")  # validation uses full precision
    epoch = before + (1 + BACKWARD) * after
    ratio = phase.epochs * epoch / (passes * before + phase.epochs * (1 + BACKWARD) * after)
    total = image * passes * case.images + full * case.held_out
    return Stored(phase, border, passes, image, total, passes * before * case.images, ratio)


def _image_bytes(network: nn.Module, border: Border, side: int, precision: str) -> int:
    device = next(network.parameters()).device
    images = torch.zeros(2, 3, side, side, device=device)
    precision = "bf16" if precision == "fp16" and device.type == "cpu" else precision
    with torch.no_grad(), autocast(device, precision):
        return border.before(images)[0].nbytes


def settled(chosen: Plan, decision: Decision) -> Plan:
    """The plan with the decision filled in."""
    s = chosen.settings
    augment = "none" if decision.views == 1 else s.augment
    filled = replace(s, cache=decision.mode, cache_views=decision.views, augment=augment)
    return replace(chosen, settings=filled, reasons={**chosen.reasons, **decision.reasons})
