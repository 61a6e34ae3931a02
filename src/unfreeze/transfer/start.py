"""The network a fine-tuning starts from: named, built, loaded, with a head for the new classes."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from unfreeze.backbones.build import build, canonical
from unfreeze.backbones.head import head_layers, replace_head
from unfreeze.backbones.origins import default_preprocess
from unfreeze.backbones.recognise import network_of
from unfreeze.backbones.stem import choose_stem, small_stem
from unfreeze.backbones.weights import Loaded, load_weights
from unfreeze.checkpoints.modelfile import ModelCard
from unfreeze.data.preprocess import Preprocess
from unfreeze.errors import UsageError

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
    head: str = "replace",
) -> Start:
    """A network for `classes` from `--arch`, `--weights`, `--stem` and images of `side` pixels.

    Without `fetch`, weights that are not a file here are left out (their preprocessing is known).
    """
    own = network_of(weights, arch)
    name = canonical(arch or (own.arch if own else DEFAULT))
    reasons = {} if arch else {"arch": "that of the weights" if own else "default"}
    network = build(name, stem="imagenet" if stem == "auto" else stem)
    kind, why = choose_stem(stem, network, weights, own.stem if own else None, side)
    if stem == "auto":
        reasons["stem"] = why
        if kind == "small":
            small_stem(network)
    loaded, wants = None, None
    if weights != "none":
        wants, _ = default_preprocess(name)
        if fetch or Path(weights).exists():
            loaded = load_weights(
                network,
                weights,
                arch=name,
                skip_head=head != "append",
                allow_partial=allow_partial,
            )
            wants = loaded.preprocess
            reasons["weights"] = loaded.account
            reasons |= {"licence": loaded.licence} if loaded.licence else {}
        else:
            reasons["weights"] = "not fetched in a dry run"
    if head == "append":
        _old_head_is_there(network, loaded, fetch)
    new = replace_head(network, classes, kind=head)
    return Start(network, new, name, kind, loaded, wants, reasons)


def from_card(card: ModelCard) -> tuple[nn.Module, list[str]]:
    """The untrained network of a classifier's card, and the names of its head's parameters."""
    network = build(card.arch, stem=card.stem)
    return network, replace_head(network, len(card.classes), kind=card.head)


def _old_head_is_there(network: nn.Module, loaded: Loaded | None, fetch: bool) -> None:
    """UsageError where `--head append` would build on outputs that mean nothing."""
    left = {*loaded.random} if loaded else {name for name, _ in network.named_parameters()}
    lost = [n for h in head_layers(network) for n in left if n.startswith(f"{h}.")]
    if lost and (loaded or fetch):
        raise UsageError(
            "--head append builds on the old outputs, but the start has none: "
            f"{lost[0]} would be random.",
            "Use --head replace, or weights that come with their head.",
        )
