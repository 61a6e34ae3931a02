"""The network a pretraining run begins with: built, loaded, and given a SwAV head that fits."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from unfreeze.backbones.build import build, canonical
from unfreeze.backbones.head import headless
from unfreeze.backbones.origins import network_of
from unfreeze.backbones.weights import Loaded, load_weights
from unfreeze.checkpoints.modelfile import model_folder
from unfreeze.runtime.console import Console
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.inherit import inherit, rest_of_run
from unfreeze.swav.model import SwAV
from unfreeze.swav.recipe import choose_arch

SMALL_PICTURE = 64  # pixels; up to here a stem that halves the picture twice costs too much


@dataclass(frozen=True)
class Start:
    """The network before training, and what was decided to get it."""

    network: nn.Module
    width: int
    settings: PretrainSettings
    reasons: dict[str, str]
    loaded: Loaded | None


def begin(settings: PretrainSettings, side: int, device: torch.device) -> Start:
    """The network for pictures of `side` pixels; WeightsError where `--init` cannot be had.

    In a dry run, weights that are not a file here are not fetched.
    """
    own = network_of(settings.init)
    arch, why = choose_arch(settings, side, device.type)
    if own and not settings.arch:
        arch, why = own[0], "that of the weights"
    reasons = {} if settings.arch else {"arch": why}
    arch, stem = canonical(arch), settings.stem
    if stem == "auto":
        stem, reasons["stem"] = _stem(settings, arch, side, own[1] if own else None)
    network = build(arch, stem=stem)
    loaded = None
    if settings.init != "none" and settings.dry_run and not Path(settings.init).exists():
        reasons["init"] = "not fetched in a dry run"
    elif settings.init != "none":
        partial = settings.allow_partial
        loaded = load_weights(network, settings.init, arch=arch, allow_partial=partial)
        reasons["init"] = loaded.account
        reasons |= {"licence": loaded.licence} if loaded.licence else {}
    width = headless(network)
    return Start(network, width, replace(settings, arch=arch, stem=stem), reasons, loaded)


def inherit_head(model: SwAV, start: Start, reasons: dict[str, str], console: Console) -> None:
    """Copy projection head and prototypes of `--init` where they fit; said and noted."""
    loaded, init = start.loaded, start.settings.init
    if loaded is None:
        return
    rest, why = rest_of_run(init) if model_folder(init) is not None else (loaded.rest, "")
    said = (f"{why}: head and prototypes start anew.",) if why else inherit(model, rest).said
    reasons["swav_head"] = " ".join(said)
    console.say(reasons["swav_head"])


def _stem(settings: PretrainSettings, arch: str, side: int, own: str | None) -> tuple[str, str]:
    """(stem, reason): `auto` keeps what the weights were trained with."""
    if own is not None:
        return own, "that of the weights"
    if settings.init != "none":
        return "imagenet", "loaded layers are never changed"
    small = (settings.image_size or side) <= SMALL_PICTURE
    if small and not arch.startswith("unfreeze/"):
        return "small", "keeps the resolution of small pictures"
    return "imagenet", "the network's own"
