"""`--head-solver`: with everything else frozen, a linear head is solved, not trained.

The network's features of each image are computed once; multinomial logistic regression by L-BFGS
gives the head's weights (`probes.logistic`). There is no learning rate to choose and no epoch.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from unfreeze.data.room import SPARE_BYTES
from unfreeze.errors import UsageError
from unfreeze.settings.finetune import FinetuneSettings
from unfreeze.settings.knob import flag
from unfreeze.transfer.border import Border, NoBorder, input_of
from unfreeze.transfer.kept import free_bytes, kept_folder
from unfreeze.transfer.plan import Plan

TOLERANCE = 1e-4  # of the largest score
RANDOM_VIEWS = 4  # of each image, where an --augment is given
SOLVED_BYTES = 4 * 2**30  # features above this are too many to solve at once

# what only means something to a head that is trained step by step; where one of these is given,
# training is what was asked for
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
    """What decides beside the settings; `head`: names of the head's parameters."""

    network: nn.Module
    head: Sequence[str]
    side: int
    images: int
    held_out: int


def choose_solver(s: FinetuneSettings, case: SolverCase) -> tuple[str, str]:
    """`logistic` or `sgd` for a head that alone learns, with the reason.

    UsageError where `--head-solver logistic` cannot be.
    """
    if s.head_solver == "sgd":
        return "sgd", "given"
    solver, why = _automatic(s, case)
    if s.head_solver == "logistic" and solver != "logistic":
        raise UsageError(f"--head-solver logistic: {why}.", "Use --head-solver auto or sgd.")
    return solver, why


def _automatic(s: FinetuneSettings, case: SolverCase) -> tuple[str, str]:
    if s.head != "replace":
        return "sgd", f"--head {s.head} is more than one linear layer"
    for name in TRAINING_OPTIONS:
        if getattr(s, name) not in (DEFAULTS[name], "last"):
            return "sgd", f"{flag(name)} is given, which is for training"
    if s.cache in ("off", "activations"):
        return "sgd", f"--cache {s.cache}: solving needs the features of all images"
    try:
        border = find_head_input(case.network, case.head, case.side)
    except NoBorder as reason:
        return "sgd", str(reason)
    (width,) = border.shape
    size = 4 * width * (case.images * solver_views(s) + case.held_out)
    if size > SOLVED_BYTES:
        return "sgd", f"{size / 2**30:.1f} GiB of features are too many to solve at once"
    if size > s.cache_budget * 2**30:
        return "sgd", f"the features do not fit --cache-budget {s.cache_budget:g}"
    if size + SPARE_BYTES > free_bytes():
        return "sgd", f"{size / 2**30:.1f} GiB of features do not fit the disk of {kept_folder()}"
    what = f"{width:,} features an image, {size / 2**20:,.1f} MiB in {kept_folder()}"
    return "logistic", (
        f"only the head learns: it is solved by logistic regression, not trained ({what}, of at "
        f"most {s.cache_budget:g} GiB for all, --cache-budget); --head-solver sgd trains it"
    )


def solver_views(s: FinetuneSettings) -> int:
    """How many views of each image are solved for: 1 without random views."""
    if s.augment == "none":
        return 1
    return s.cache_views or (1 if s.augment == "photo" else RANDOM_VIEWS)


def solved(chosen: Plan, why: str) -> Plan:
    """The plan of a head that is solved: one pass over the images, nothing is chosen by val."""
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
        reasons["cache_views"] = "random views of each image, all of which are solved for"
    else:
        reasons["augment"] = "features of the images as evaluation sees them; --cache-views 4 adds"
        reasons["augment"] += " random views"
    return replace(chosen, settings=settings, reasons=reasons)


def find_head_input(network: nn.Module, head: Sequence[str], side: int) -> Border:
    """The features [B, D] that a linear head is fed, proven to give what the network gives.

    `head`: names of its parameters; `side`: of the network's input in pixels. Features of a 1x1
    convolution in front of a pooling are pooled first, which is the same. NoBorder says why there
    are none. The network is in evaluation mode afterwards.
    """
    layers = {name.rpartition(".")[0] for name in head}
    if len(layers) != 1:
        raise NoBorder(f"the network has {len(layers)} heads")
    (layer,) = layers
    module = network.get_submodule(layer)
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    if not (type(module) is nn.Linear or pointwise):
        raise NoBorder(f"{layer} is no linear layer")
    network.eval()
    before = functools.partial(pooled_input, network, layer)
    after = functools.partial(_scores, network, layer)
    device = next(network.parameters()).device
    two = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        features = before(two)
        whole, halves = network(two), after(features) if features.dim() == 2 else None
    if halves is None or whole.shape != halves.shape:
        raise NoBorder(f"what {layer} is fed is no vector for each image")
    if (whole - halves).abs().max() > TOLERANCE * (whole.abs().max() + 1e-12):
        raise NoBorder(f"the network does more than {layer} with its features")
    return Border(
        name=f"{layer}.input",
        shape=tuple(features.shape[1:]),
        entries=tuple(n for n in network.state_dict() if not n.startswith(f"{layer}.")),
        text=_layers(network, layer),
        before=before,
        after=after,
        learner=layer,
        approach=None,
    )


def pooled_input(network: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What `layer` is fed for each image, [B, D]; maps are pooled."""
    features = input_of(network, layer, images)
    return features.mean((2, 3)) if features.dim() == 4 else features


def _scores(network: nn.Module, layer: str, features: Tensor) -> Tensor:
    head = network.get_submodule(layer)
    weight: Tensor = head.weight  # type: ignore[assignment]
    bias: Tensor | None = head.bias  # type: ignore[assignment]
    return functional.linear(features, weight.flatten(1), bias)


def _layers(network: nn.Module, head: str) -> str:
    """What the network is without its head, for a key of its features."""
    lines = [
        f"{name}: {type(module).__qualname__} {module.extra_repr()}"
        for name, module in network.named_modules()
        if name != head
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
