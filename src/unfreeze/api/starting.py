"""The network a pretraining run begins with: built, loaded, its head removed."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from unfreeze.backbones.build import build as build_network
from unfreeze.backbones.build import canonical
from unfreeze.backbones.head import headless
from unfreeze.backbones.origins import network_of
from unfreeze.backbones.weights import Loaded, load_weights
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.recipe import choose_arch


@dataclass(frozen=True)
class Start:
    """The network before training, and what was decided to get it."""

    network: nn.Module
    width: int
    settings: PretrainSettings
    reasons: dict[str, str]
    loaded: Loaded | None


def begin(settings: PretrainSettings, side: int, device: torch.device) -> Start:
    """The network for pictures of `side` pixels; WeightsError where `--init` cannot be had."""
    own = network_of(settings.init)
    arch, why = choose_arch(settings, side, device.type)
    if own and not settings.arch:
        arch, why = own[0], "that of the weights"
    reasons = {} if settings.arch else {"arch": why}
    arch, stem = canonical(arch), settings.stem
    if stem == "auto":
        small = (settings.image_size or side) <= 64 and settings.init == "none"
        if own:
            stem, why = own[1], "that of the weights"
        elif small and not arch.startswith("unfreeze/"):
            stem, why = "small", "keeps the resolution of small pictures"
        else:
            trained = settings.init != "none"
            stem, why = "imagenet", "loaded layers are never changed" if trained else "its own"
        reasons["stem"] = why
    network = build_network(arch, stem=stem)
    loaded = None
    if settings.init != "none" and settings.dry_run and not Path(settings.init).exists():
        reasons["init"] = "not fetched in a dry run"
    elif settings.init != "none":
        partial = settings.allow_partial
        loaded = load_weights(network, settings.init, arch=arch, allow_partial=partial)
        reasons["init"] = loaded.account
        reasons |= {"licence": loaded.licence} if loaded.licence else {}
    width = headless(network)
    changed = PretrainSettings(**{**vars(settings), "arch": arch, "stem": stem})
    return Start(network, width, changed, reasons, loaded)
