"""The initial network of a pretraining run: builds the backbone and loads weights."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from unfreeze.checkpoints.model_file import model_folder
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import normalize
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.errors import UsageError
from unfreeze.models.build import build, canonical_arch
from unfreeze.models.head import remove_head
from unfreeze.models.identify_file import arch_of_weights
from unfreeze.models.load_weights import LoadedWeights, load_weights
from unfreeze.models.segmentation import backbone_arch, is_segmentation_arch
from unfreeze.models.stem import apply_small_stem, choose_stem
from unfreeze.models.whitening import first_3x3, whiten_first_layer
from unfreeze.runs.pretraining.data import Positions
from unfreeze.runtime.console import Console
from unfreeze.swav.auto_recipe import choose_arch
from unfreeze.swav.dataset_stats import SMALL, evaluation_preprocess
from unfreeze.swav.head_weights import head_weights_of_run, prototypes_in
from unfreeze.swav.presets import usual_side
from unfreeze.tasks.base import PretrainTask
from unfreeze.transfer.plan import SMALLEST_MAP, last_feature_map_size

WHITENED_ON = 512  # images


@dataclass(frozen=True)
class PretrainStart:
    """The network before training, its settings and their reasons."""

    network: nn.Module
    width: int
    settings: PretrainSettings
    reasons: dict[str, str]
    loaded: LoadedWeights | None


def initial_network(
    settings: PretrainSettings, side: int, images: int, device: torch.device
) -> PretrainStart:
    """The network for `images` images of `side` pixels; WeightsError if `--init` cannot be loaded.

    A dry run downloads no weights.
    """
    known = arch_of_weights(settings.init, settings.arch)
    arch, why = choose_arch(settings, side, images, device.type)
    if known and not settings.arch:
        arch, why = known.arch, "architecture of the weights"
    reasons = {} if settings.arch else {"arch": why}
    arch, wanted_stem = canonical_arch(arch), settings.stem
    if is_segmentation_arch(arch):
        raise UsageError(
            f"{arch} is a segmentation network; pretrain trains its encoder alone.",
            f"Use --arch {backbone_arch(arch) or 'torchvision/resnet34'}, then finetune "
            f"--arch {arch} --weights RUN.",
        )
    network = build(arch, stem="imagenet" if wanted_stem == "auto" else wanted_stem)
    size = settings.image_size or max(settings.size_crops or (side,))
    stem, why = choose_stem(
        wanted_stem, network, settings.init, known.stem if known else None, size
    )
    if wanted_stem == "auto":
        reasons["stem"] = why
        if stem == "small":
            apply_small_stem(network)
        settings, why = _enlarge_if_small(settings, network, side, device.type)
        reasons |= {"image_size": why} if why else {}
    loaded = None
    if settings.init != "none" and settings.dry_run and not Path(settings.init).exists():
        reasons["init"] = "not fetched in a dry run"
    elif settings.init != "none":
        partial = settings.allow_partial
        loaded = load_weights(network, settings.init, arch=arch, allow_partial=partial)
        reasons["init"] = loaded.account
        reasons |= loaded.licences
    width = remove_head(network)
    return PretrainStart(network, width, replace(settings, arch=arch, stem=stem), reasons, loaded)


def initialise_stem(
    start: PretrainStart, s: PretrainSettings, images: ImageDataset, positions: Positions
) -> dict[str, str]:
    """Whitening filters of the training images for the first layer, in place; {setting: reason}.

    Only in a 3x3 layer that starts at random, and for small colour images.
    """
    layer = first_3x3(start.network)
    size = evaluation_preprocess(s).image_size
    if s.stem_init == "random" or layer is None or s.init != "none" or s.recipe != "auto":
        return {}
    if size > SMALL:
        return {}
    rng = np.random.default_rng(s.seed)
    sample = np.sort(rng.permutation(positions)[:WHITENED_ON])
    pixels = [evaluation_preprocess(s).pixels(images[int(i)]) for i in sample]
    count = whiten_first_layer(layer, normalize(torch.from_numpy(np.stack(pixels))), s.seed)
    if not count:
        return {"stem_init": "random: the images are grey"}
    return {"stem_init": f"{count} of {layer.out_channels} filters whiten patches of the images"}


def has_swav_head(start: PretrainStart) -> bool:
    """Whether `--init` is a SwAV run with its projection head and prototypes."""
    init = start.settings.init
    if start.loaded is None or model_folder(init) is None:
        return False
    return bool(prototypes_in(head_weights_of_run(init)[0]))


def inherit_head(
    task: PretrainTask, start: PretrainStart, reasons: dict[str, str], console: Console
) -> None:
    """Copy what `--init` holds besides the backbone if it fits; add a note to `reasons`."""
    loaded, init = start.loaded, start.settings.init
    if loaded is None:
        return
    tensors, why = (
        head_weights_of_run(init) if model_folder(init) is not None else (loaded.rest, "")
    )
    messages = (
        (f"{why}: the SwAV head is initialised at random.",) if why else task.load_head(tensors)
    )
    if messages:
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
        map_size = last_feature_map_size(network, size)
    except UsageError:
        return False
    return map_size is None or min(map_size) >= SMALLEST_MAP
