"""Decides before a run whether to cache features: cost, savings and reasons."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.data.cache.folder import RESERVED_BYTES
from unfreeze.errors import UsageError
from unfreeze.models.shape_trace import example_input
from unfreeze.runtime.console import pluralised
from unfreeze.runtime.device import autocast
from unfreeze.transfer.feature_cache.store import feature_cache_folder, free_bytes
from unfreeze.transfer.freezing.freeze import FreezeSchedule
from unfreeze.transfer.freezing.schedule import (
    ACTIVATIONS,
    FEATURES,
    FrozenPhase,
    frozen_phases,
    is_cached,
)
from unfreeze.transfer.freezing.split_model import (
    NoSplitPoint,
    SplitPoint,
    find_split_point,
    split_flops,
)
from unfreeze.transfer.plan import FinetuneRecipe

VIEWS = 4  # cached per image by `--cache auto` if views are random
WORTH = 1.5  # smallest speed-up in FLOPs for which `auto` caches features
BACKWARD = 2  # cost of a backward pass in forward passes, about


@dataclass(frozen=True)
class CacheEstimate:
    """The feature cache of one phase; `bytes`: its size, `work`: FLOPs to compute it.

    `ratio`: FLOPs of the phase without the cache, divided by those with it.
    """

    phase: FrozenPhase
    split_point: SplitPoint
    passes: int
    image_bytes: int
    bytes: int
    work: float
    ratio: float

    @property
    def text(self) -> str:
        """Tensor, size and speed-up, for people."""
        shape = "x".join(map(str, self.split_point.shape))
        return (
            f"{self.split_point.name} ({shape}), {self.image_bytes / 1024:,.1f} KiB per image and "
            f"view, {self.bytes / 2**30:.2f} GiB in {feature_cache_folder()}; the frozen "
            "layers compute "
            f"{pluralised(self.passes, 'pass', 'passes')} instead of {self.phase.epochs}, "
            "which is "
            f"{self.ratio:.1f} times less work"
        )


@dataclass(frozen=True)
class CacheDecision:
    """`mode`: off, FEATURES or ACTIVATIONS; `views` per image; `reasons` by setting."""

    mode: str
    views: int | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    learner: str | None = None  # the only trainable layer in all epochs, if it is a Linear
    work: float = 0.0  # FLOPs to compute the features


@dataclass(frozen=True)
class CacheCase:
    """Inputs of the decision besides the settings."""

    network: nn.Module
    schedule: FreezeSchedule
    head: Collection[str]
    images: int
    held_out: int


def check_cache_settings(
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
    phases = [
        p for p in frozen_phases(network, schedule, s.epochs or 0, head) if is_cached(s.cache, p)
    ]
    if not phases:
        raise UsageError(f"--cache {s.cache}: {_NOTHING[s.cache]}.", _INSTEAD)
    try:
        for phase in phases:
            find_split_point(network, phase.frozen, side)
    except NoSplitPoint as reason:
        raise UsageError(f"--cache {s.cache}: {reason}.", _INSTEAD) from reason


def decide_cache(s: FinetuneSettings, case: CacheCase) -> CacheDecision:
    """Resolve `--cache` and `--cache-views`; `s` is resolved except for them."""
    if s.cache == "off":
        return CacheDecision("off", reasons={"cache": "given"})
    if s.mixup or s.cutmix:
        return CacheDecision("off", reasons={"cache": _MIXED})
    phases = frozen_phases(case.network, case.schedule, s.epochs or 0, case.head)
    # if only the head is trained, both modes cache its input
    modes = (FEATURES, ACTIVATIONS) if s.cache == "auto" else (s.cache,)
    mode = next((m for m in modes if any(is_cached(m, phase) for phase in phases)), modes[-1])
    cached = [phase for phase in phases if is_cached(mode, phase)]
    decision = _with_mode(s, case, mode, cached) if cached else _NOTHING[mode]
    if isinstance(decision, CacheDecision):
        return decision
    unused = "" if s.cache_views is None else "--cache-views is not used: "
    return CacheDecision("off", reasons={"cache": unused + decision})


_NOTHING = {
    FEATURES: "no epoch trains only the head (--freeze all)",
    ACTIVATIONS: "nothing is frozen",
}
_MIXED = "--mixup and --cutmix create new images in each step"
_INSTEAD = "Use --cache auto or off."


def _with_mode(
    s: FinetuneSettings, case: CacheCase, mode: str, phases: Sequence[FrozenPhase]
) -> CacheDecision | str:
    """The decision, or the reason against a cache."""
    plain = s.augment == "none"
    views = s.cache_views or (1 if plain else VIEWS)
    try:
        stored = [_stored(s, case, phase, 1 if plain else views) for phase in phases]
    except NoSplitPoint as reason:
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
    all_epochs = len(stored) == 1 and stored[0].phase.epochs == s.epochs
    learner = stored[0].split_point.learner if all_epochs else None
    return CacheDecision(mode, views, reasons, learner, sum(part.work for part in stored))


def _objection(
    s: FinetuneSettings, mode: str, stored: Sequence[CacheEstimate], *, plain: bool
) -> str:
    """Why `--cache auto` caches nothing; "" if it does."""
    needed = sum(part.bytes for part in stored)
    if all(part.passes >= part.phase.epochs for part in stored):
        return f"with {s.epochs} epochs it would save no passes through the frozen layers"
    if needed > s.cache_budget * 2**30:
        return f"{needed / 2**30:.1f} GiB exceed --cache-budget {s.cache_budget:g}"
    if needed + RESERVED_BYTES > free_bytes():
        return f"{needed / 2**30:.1f} GiB do not fit on the disk of {feature_cache_folder()}"
    if mode == ACTIVATIONS and not plain and s.cache_views is None:
        return (
            "with many trainable layers, new random views each epoch are worth more; "
            f"--cache activations --cache-views {VIEWS} would cache {stored[0].text}"
        )
    if max(part.ratio for part in stored) < WORTH:
        return f"it would save too little: {stored[0].text}"
    return ""


def _stored(s: FinetuneSettings, case: CacheCase, phase: FrozenPhase, views: int) -> CacheEstimate:
    side = s.image_size or 0
    split_point = find_split_point(case.network, phase.frozen, side)
    before, after = split_flops(case.network, split_point, side)
    passes = len(phase.views(views))
    image = _image_bytes(case.network, split_point, side, s.precision)
    full = _image_bytes(case.network, split_point, side, "fp32")  # validation uses full precision
    epoch = before + (1 + BACKWARD) * after
    ratio = phase.epochs * epoch / (passes * before + phase.epochs * (1 + BACKWARD) * after)
    total = image * passes * case.images + full * case.held_out
    return CacheEstimate(
        phase, split_point, passes, image, total, passes * before * case.images, ratio
    )


def _image_bytes(network: nn.Module, split_point: SplitPoint, side: int, precision: str) -> int:
    device = next(network.parameters()).device
    images = example_input(network, (side, side), 2, device=device)
    precision = "bf16" if precision == "fp16" and device.type == "cpu" else precision
    with torch.no_grad(), autocast(device, precision):
        return split_point.before(images)[0].nbytes


def with_cache_decision(chosen: FinetuneRecipe, decision: CacheDecision) -> FinetuneRecipe:
    """The plan with the decision filled in."""
    s = chosen.settings
    augment = "none" if decision.views == 1 else s.augment
    filled = replace(s, cache=decision.mode, cache_views=decision.views, augment=augment)
    return replace(chosen, settings=filled, reasons={**chosen.reasons, **decision.reasons})
