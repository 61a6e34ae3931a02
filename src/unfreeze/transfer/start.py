"""The network a fine-tuning starts from: named, built, loaded, with a head for the new classes."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from unfreeze.backbones.build import build, canonical
from unfreeze.backbones.head import replace_head
from unfreeze.backbones.origins import default_preprocess, network_of
from unfreeze.backbones.stem import PLACES, small_stem
from unfreeze.backbones.weights import Loaded, load_weights
from unfreeze.checkpoints.modelfile import ModelCard
from unfreeze.data.preprocess import Preprocess

SMALL_PICTURE = 64  # pixels; up to here a stem that halves the picture twice costs too much
DEFAULT = "torchvision/resnet50"


@dataclass(frozen=True)
class Start:
    """A network with its new head, and what was decided to get it.

    `head`: names of the new parameters. `loaded`: what came of the weights. `wants`: the
    preprocessing they ask for, None from scratch.
    """

    network: nn.Module
    head: list[str]
    arch: str
    stem: str
    loaded: Loaded | None
    wants: Preprocess | None
    reasons: dict[str, str] = field(default_factory=dict)


def start(
    arch: str | None,
    weights: str,
    stem: str,
    *,
    classes: int,
    side: int,
    fetch: bool = True,
    allow_partial: bool = False,
) -> Start:
    """A network for `classes` from `--arch`, `--weights`, `--stem` and pictures of `side` pixels.

    Without `fetch`, weights that are not a file here are left out (their preprocessing is known).
    """
    own = network_of(weights)
    name = canonical(arch or (own[0] if own else DEFAULT))
    reasons = {} if arch else {"arch": "that of the weights" if own else "the usual start"}
    network = build(name, stem="imagenet" if stem == "auto" else stem)
    kind, why = choose_stem(stem, network, weights, own and own[1], side)
    if stem == "auto":
        reasons["stem"] = why
        if kind == "small":
            small_stem(network)
    loaded, wants = None, None
    if weights != "none":
        wants, _ = default_preprocess(name)
        if fetch or Path(weights).exists():
            loaded = load_weights(network, weights, arch=name, allow_partial=allow_partial)
            wants = loaded.preprocess
            reasons["weights"] = loaded.account
            reasons |= {"licence": loaded.licence} if loaded.licence else {}
        else:
            reasons["weights"] = "not fetched in a dry run"
    head = replace_head(network, classes)
    return Start(network, head, name, kind, loaded, wants, reasons)


def from_card(card: ModelCard) -> tuple[nn.Module, list[str]]:
    """The untrained network of a classifier's card, and the names of its head's parameters."""
    network = build(card.arch, stem=card.stem)
    return network, replace_head(network, len(card.classes))


def choose_stem(
    stem: str, network: nn.Module, weights: str, own: str | None, side: int
) -> tuple[str, str]:
    """(stem, reason): `auto` keeps what the weights were trained with (`own`, where they say)."""
    if stem != "auto":
        return stem, "asked for"
    if own is not None:
        return own, "that of the weights"
    if weights != "none":
        return "imagenet", "loaded layers are never changed"
    if side <= SMALL_PICTURE and has_small(network):
        return "small", f"keeps the resolution of pictures of {side} pixels"
    return "imagenet", "the network's own"


def has_small(network: nn.Module) -> bool:
    """Whether the network begins in a way that `small_stem` can change."""
    modules = dict(network.named_modules())
    return any(
        type(modules.get(convolution)) is nn.Conv2d and pooling in modules
        for convolution, pooling in PLACES
    )
