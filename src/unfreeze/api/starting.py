"""The network a pretraining run begins with: built, loaded, its head removed."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from unfreeze.backbones.build import build as build_network
from unfreeze.backbones.build import canonical
from unfreeze.backbones.head import headless
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
    arch, why = choose_arch(settings, side, device.type)
    reasons = {} if settings.arch else {"arch": why}
    arch, stem = canonical(arch), settings.stem
    if stem == "auto":
        small = (settings.image_size or side) <= 64 and settings.init == "none"
        stem = "small" if small and not arch.startswith("unfreeze/") else "imagenet"
        reasons["stem"] = (
            "keeps the resolution of small pictures"
            if stem == "small"
            else "loaded layers are never changed"
            if settings.init != "none"
            else "the network's own"
        )
    network = build_network(arch, stem=stem)
    loaded = None
    if settings.init != "none" and settings.dry_run and not Path(settings.init).exists():
        reasons["init"] = "not fetched in a dry run"
    elif settings.init != "none":
        loaded = load_weights(network, settings.init, arch=arch)
        reasons["init"] = f"{loaded.share:.1%} of the backbone found in {loaded.source}"
    width = headless(network)
    changed = PretrainSettings(**{**vars(settings), "arch": arch, "stem": stem})
    return Start(network, width, changed, reasons, loaded)
