"""Builds the network to fine-tune: architecture, pretrained weights and a new head."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import UsageError
from unfreeze.models.build import build, canonical_arch
from unfreeze.models.head import head_layers, replace_head
from unfreeze.models.identify_file import arch_of_weights
from unfreeze.models.load_weights import LoadedWeights, load_weights
from unfreeze.models.stem import apply_small_stem, choose_stem
from unfreeze.models.weight_sources import default_preprocess

DEFAULT = "torchvision/resnet50"


@dataclass(frozen=True)
class FinetuneStart:
    """A network with its new head, and how it was built.

    `head`: names of the new parameters. `loaded`: report of loading the weights. `wants`: the
    preprocessing of the weights, None from scratch.
    """

    network: nn.Module
    head: list[str]
    arch: str
    stem: str
    loaded: LoadedWeights | None
    wants: Preprocess | None
    reasons: dict[str, str] = field(default_factory=dict)


def build_start(
    arch: str | None,
    weights: str,
    stem: str,
    *,
    classes: int,
    side: int,
    fetch: bool = True,
    allow_partial: bool = False,
    head: str = "replace",
) -> FinetuneStart:
    """A network for `classes` from `--arch`, `--weights`, `--stem` and images of `side` pixels.

    Without `fetch`, weights are loaded only from local files; their preprocessing is known anyway.
    """
    trained = arch_of_weights(weights, arch)
    name = canonical_arch(arch or (trained.arch if trained else DEFAULT))
    reasons = {} if arch else {"arch": "that of the weights" if trained else "default"}
    network = build(name, stem="imagenet" if stem == "auto" else stem)
    kind, why = choose_stem(stem, network, weights, trained.stem if trained else None, side)
    if stem == "auto":
        reasons["stem"] = why
        if kind == "small":
            apply_small_stem(network)
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
            reasons["weights"] = "not downloaded in a dry run"
    if head == "append":
        _check_old_head(network, loaded, fetch)
    head_names = replace_head(network, classes, kind=head)
    return FinetuneStart(network, head_names, name, kind, loaded, wants, reasons)


def network_from_card(card: ModelCard) -> tuple[nn.Module, list[str]]:
    """The untrained network of a classifier's model card, and its head's parameter names."""
    network = build(card.arch, stem=card.stem)
    return network, replace_head(network, len(card.classes), kind=card.head)


def _check_old_head(network: nn.Module, loaded: LoadedWeights | None, fetch: bool) -> None:
    """Raise UsageError if `--head append` would build on an untrained head."""
    random = {*loaded.random} if loaded else {name for name, _ in network.named_parameters()}
    untrained = [n for h in head_layers(network) for n in random if n.startswith(f"{h}.")]
    if untrained and (loaded or fetch):
        raise UsageError(
            "--head append needs the trained head of the weights, but "
            f"{untrained[0]} is randomly initialised.",
            "Use --head replace, or weights that include their head.",
        )
