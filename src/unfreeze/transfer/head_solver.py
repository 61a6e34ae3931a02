"""`--head-solver`: fit a linear head on a frozen backbone by logistic regression.

The features of each image are computed once; multinomial logistic regression with L-BFGS gives the
head's weights (`probes.logistic`). There is no learning rate and no epoch.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from unfreeze.config.field import flag
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.data.cache.folder import RESERVED_BYTES
from unfreeze.errors import UsageError
from unfreeze.models.shape_trace import example_input
from unfreeze.models.text import is_text_network
from unfreeze.transfer.feature_cache.store import feature_cache_folder, free_bytes
from unfreeze.transfer.freezing.split_model import NoSplitPoint, SplitPoint, layer_input
from unfreeze.transfer.plan import FinetuneRecipe

TOLERANCE = 1e-4  # of the largest logit
RANDOM_VIEWS = 4  # per image, if --augment is given
SOLVED_BYTES = 4 * 2**30  # of features at most: the solver needs them in memory

# settings that apply to SGD training only; if the user gives one, the head is trained with SGD
TRAINING_OPTIONS = (
    "lr",
    "head_lr",
    "weight_decay",
    "find_lr",
    "optimizer",
    "momentum",
    "schedule",
    "warmup_epochs",
    "patience",
    "select",
    "mixup",
    "cutmix",
    "ema",
    "clip_grad",
    "accumulate",
    "keep_every",
    "sampling",
)
DEFAULTS = {entry.name: entry.default for entry in fields(FinetuneSettings)}
UNUSED = ("lr", "weight_decay", "cache", "cache_views", "batch_size", "sweep", "select", "augment")


@dataclass(frozen=True)
class SolverCase:
    """Inputs of the choice besides the settings; `head`: names of the head's parameters."""

    network: nn.Module
    head: Sequence[str]
    side: int
    images: int
    held_out: int


def choose_solver(s: FinetuneSettings, case: SolverCase) -> tuple[str, str]:
    """`logistic` or `sgd` for a run that trains only the head, and the reason.

    Raises UsageError if `--head-solver logistic` is not possible.
    """
    if s.head_solver == "sgd":
        return "sgd", "given"
    solver, why = _automatic(s, case)
    if s.head_solver == "logistic" and solver != "logistic":
        raise UsageError(f"--head-solver logistic: {why}.", "Use --head-solver auto or sgd.")
    return solver, why


def _automatic(s: FinetuneSettings, case: SolverCase) -> tuple[str, str]:
    if s.head != "replace":
        return "sgd", f"--head {s.head} has more than one linear layer"
    # as in a finished run's config.toml
    filled = {"optimizer": "adamw" if is_text_network(case.network) else "sgd"}
    for name in TRAINING_OPTIONS:
        if getattr(s, name) not in (DEFAULTS[name], filled.get(name), "last"):
            return "sgd", f"{flag(name)} is given, which applies to SGD only"
    if s.cache in ("off", "activations"):
        return "sgd", f"--cache {s.cache}: logistic regression needs the feature cache"
    try:
        split_point = find_head_input(case.network, case.head, case.side)
    except NoSplitPoint as reason:
        return "sgd", str(reason)
    (width,) = split_point.shape
    size = 4 * width * (case.images * solver_views(s) + case.held_out)
    if size > SOLVED_BYTES:
        return (
            "sgd",
            f"{size / 2**30:.1f} GiB of features exceed the solver's {SOLVED_BYTES / 2**30:g} GiB",
        )
    if size > s.cache_budget * 2**30:
        return "sgd", f"the features exceed --cache-budget {s.cache_budget:g}"
    if size + RESERVED_BYTES > free_bytes():
        return (
            "sgd",
            f"{size / 2**30:.1f} GiB of features do not fit on the disk of "
            f"{feature_cache_folder()}",
        )
    what = f"{width:,} features per image, {size / 2**20:,.1f} MiB in {feature_cache_folder()}"
    return "logistic", (
        f"only the head is trained: logistic regression on cached features ({what}; --cache-budget "
        f"{s.cache_budget:g} GiB for all caches); --head-solver sgd trains it with SGD instead"
    )


def solver_views(s: FinetuneSettings) -> int:
    """Views per image that the solver fits on: 1 without augmentation."""
    if s.augment == "none":
        return 1
    return s.cache_views or (1 if s.augment == "photo" else RANDOM_VIEWS)


def plan_with_solver(chosen: FinetuneRecipe, why: str) -> FinetuneRecipe:
    """The plan with the logistic solver: one pass over the images, no epochs to select from."""
    views = solver_views(chosen.settings)
    settings = replace(
        chosen.settings,
        head_solver="logistic",
        cache="features",
        cache_views=views,
        augment=chosen.settings.augment if views > 1 else "none",
        epochs=1,
        sweep="off",
        select="last",
        lr=None,
        weight_decay=None,
    )
    reasons = {name: text for name, text in chosen.reasons.items() if name not in UNUSED}
    reasons["head_solver"] = why
    if views > 1:
        reasons["cache_views"] = "random views of each image, all used by the solver"
    else:
        reasons["augment"] = "evaluation preprocessing; --cache-views 4 uses random views"
    return replace(chosen, settings=settings, reasons=reasons)


def find_head_input(network: nn.Module, head: Sequence[str], side: int) -> SplitPoint:
    """Split at the input [B, D] of a linear head; verified against the network's output.

    `head`: names of its parameters; `side`: input size in pixels. A 1x1 convolution before a global
    pooling counts as linear: its input is pooled first, which is equivalent. Raises NoSplitPoint
    with the reason if there is no such split. Leaves the network in eval mode.
    """
    layers = {name.rpartition(".")[0] for name in head}
    if len(layers) != 1:
        raise NoSplitPoint(f"the network has {len(layers)} heads")
    (layer,) = layers
    module = network.get_submodule(layer)
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    if not (type(module) is nn.Linear or pointwise):
        raise NoSplitPoint(f"{layer} is not a linear layer")
    network.eval()
    before = functools.partial(pooled_input, network, layer)
    after = functools.partial(_logits, network, layer)
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = example_input(network, (side, side), 2, device=device, generator=generator)
    with torch.no_grad():
        features = before(images)
        expected, logits = network(images), after(features) if features.dim() == 2 else None
    if logits is None or expected.shape != logits.shape:
        raise NoSplitPoint(f"the input of {layer} is not one vector per image")
    if (expected - logits).abs().max() > TOLERANCE * (expected.abs().max() + 1e-12):
        raise NoSplitPoint(f"the network applies more than {layer} to its features")
    return SplitPoint(
        name=f"{layer}.input",
        shape=tuple(features.shape[1:]),
        entries=tuple(n for n in network.state_dict() if not n.startswith(f"{layer}.")),
        text=_digest(network, layer),
        before=before,
        after=after,
        learner=layer,
        approach=None,
    )


def pooled_input(network: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Input of `layer` for each image, [B, D]; feature maps are averaged."""
    features = layer_input(network, layer, images)
    return features.mean((2, 3)) if features.dim() == 4 else features


def _logits(network: nn.Module, layer: str, features: Tensor) -> Tensor:
    head = network.get_submodule(layer)
    weight: Tensor = head.weight  # type: ignore[assignment]
    bias: Tensor | None = head.bias  # type: ignore[assignment]
    return functional.linear(features, weight.flatten(1), bias)


def _digest(network: nn.Module, head: str) -> str:
    """Digest of the network's layers without the head, for cache keys."""
    lines = [
        f"{name}: {type(module).__qualname__} {module.extra_repr()}"
        for name, module in network.named_modules()
        if name != head
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
