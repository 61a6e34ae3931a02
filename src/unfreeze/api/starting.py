"""The initial network of a pretraining run: builds the backbone and loads weights."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from unfreeze.backbones.build import build, canonical
from unfreeze.backbones.head import headless
from unfreeze.backbones.recognise import network_of
from unfreeze.backbones.stem import choose_stem, small_stem
from unfreeze.backbones.weights import Loaded, load_weights
from unfreeze.checkpoints.modelfile import model_folder
from unfreeze.errors import UsageError
from unfreeze.runtime.console import Console
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.inherit import inherit, rest_of_run
from unfreeze.swav.model import SwAV
from unfreeze.swav.recipe import choose_arch
from unfreeze.swav.recipes import usual_side
from unfreeze.transfer.maps import final_map
from unfreeze.transfer.plan import SMALLEST_MAP


@dataclass(frozen=True)
class Start:
    """The network before training, its settings and their reasons."""

    network: nn.Module
    width: int
    settings: PretrainSettings
    reasons: dict[str, str]
    loaded: Loaded | None


def begin(settings: PretrainSettings, side: int, device: torch.device) -> Start:
    """The network for images of `side` pixels; WeightsError if `--init` cannot be loaded.

    A dry run downloads no weights.
    """
    known = network_of(settings.init, settings.arch)
    arch, why = choose_arch(settings, side, device.type)
    if known and not settings.arch:
        arch, why = known.arch, "architecture of the weights"
    reasons = {} if settings.arch else {"arch": why}
    arch, wanted_stem = canonical(arch), settings.stem
    network = build(arch, stem="imagenet" if wanted_stem == "auto" else wanted_stem)
    size = settings.image_size or max(settings.size_crops or (side,))
    stem, why = choose_stem(
        wanted_stem, network, settings.init, known.stem if known else None, size
    )
    if wanted_stem == "auto":
        reasons["stem"] = why
        if stem == "small":
            small_stem(network)
        settings, why = _enlarge_if_small(settings, network, side, device.type)
        reasons |= {"image_size": why} if why else {}
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
    """Copy projection head and prototypes of `--init` if they fit; add a note to `reasons`."""
    loaded, init = start.loaded, start.settings.init
    if loaded is None:
        return
    tensors, why = rest_of_run(init) if model_folder(init) is not None else (loaded.rest, "")
    messages = (
        (f"{why}: the SwAV head is initialised at random.",)
        if why
        else inherit(model, tensors).said
    )
    reasons["swav_head"] = " ".join(messages)
    console.say(reasons["swav_head"])


def _enlarge_if_small(
    settings: PretrainSettings, network: nn.Module, side: int, device: str
) -> tuple[PretrainSettings, str]:
    """(settings with larger images if the last feature map would be below 2x2, the reason)."""
    if settings.image_size or settings.size_crops or settings.recipe != "auto":
        return settings, ""
    size = usual = usual_side(side, device)
    while size < 224 and not _map_is_large_enough(network, size):
        size = min(2 * size, 224)
    if size == usual:
        return settings, ""
    why = f"images of {side} pixels are enlarged: else the last feature map is below 2x2"
    return replace(settings, image_size=size), why


def _map_is_large_enough(network: nn.Module, size: int) -> bool:
    try:
        map_size = final_map(network, size)
    except UsageError:
        return False
    return map_size is None or min(map_size) >= SMALLEST_MAP
