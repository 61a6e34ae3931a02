"""Weights adapted to another shape: first convolutions (input channels), position embeddings."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from unfreeze.backbones.positions import prefix_tokens, resampled, square
from unfreeze.backbones.stem import first_convolution
from unfreeze.checkpoints.keys import Match, Mismatch, Shape

COLOURS = 3
_POSITIONS = ("pos_embed", "pos_embedding")  # last part of the parameter name in timm, torchvision


def adapted(model: nn.Module, result: Match) -> Match:
    """The match, with the shape mismatches that `fitted` can resolve moved into its pairs."""
    settled = [clash for clash in result.mismatched if _note(model, clash)]
    if not settled:
        return result
    return replace(
        result,
        pairs=result.pairs | {clash.wanted: clash.found for clash in settled},
        mismatched=tuple(clash for clash in result.mismatched if clash not in settled),
        notes=(*result.notes, *(_note(model, clash) for clash in settled)),
    )


def fitted(model: nn.Module, name: str, tensor: Tensor, wanted: Tensor) -> Tensor:
    """The tensor in the shape of `wanted`, the model's state-dict entry `name`."""
    if tensor.shape == wanted.shape:
        return tensor
    if name == first_convolution(model):
        return _colours(tensor)
    prefix = prefix_tokens(model)
    side = square(wanted.shape[1], prefix)
    return resampled(tensor, (side, side), prefix)


def gathered(tensors: Mapping[str, Tensor], name: str, result: Match) -> Tensor:
    """The tensor of a matched name: from the file, or several of its tensors concatenated."""
    if name in result.joined:
        return torch.cat([tensors[part] for part in result.joined[name]])
    return tensors[name]


def _note(model: nn.Module, clash: Mismatch) -> str:
    """How a shape mismatch is resolved; "" if it cannot be."""
    found, wanted = clash.found_shape, clash.wanted_shape
    if clash.wanted == first_convolution(model) and _only_channels(found, wanted):
        return f"first layer adapted from {found[1]} to 3 channels ({_how(found[1])})"
    if clash.wanted.rpartition(".")[2] in _POSITIONS and _grids(found, wanted, model):
        prefix = prefix_tokens(model)
        old, new = square(found[1], prefix), square(wanted[1], prefix)
        return f"position embeddings interpolated from {old}x{old} to {new}x{new}"
    return ""


def _only_channels(found: Shape, wanted: Shape) -> bool:
    return (
        len(found) == len(wanted) == 4
        and wanted[1] == COLOURS != found[1]
        and (found[0], *found[2:]) == (wanted[0], *wanted[2:])
    )


def _how(channels: int) -> str:
    if channels == 1:
        return "weights divided by 3: same output on greyscale images"
    kept = "first three channels" if channels > COLOURS else "channels repeated"
    return f"{kept}, scaled by {channels}/3"


def _colours(weight: Tensor) -> Tensor:
    """Kernels [O, n, h, w] as [O, 3, h, w], as timm does: channels repeated or dropped, scaled."""
    channels = weight.shape[1]
    repeated = weight.float().repeat(1, math.ceil(COLOURS / channels), 1, 1)[:, :COLOURS]
    return (repeated * (channels / COLOURS)).to(weight.dtype)


def _grids(found: Shape, wanted: Shape, model: nn.Module) -> bool:
    if len(found) != 3 or len(wanted) != 3 or (found[0], found[2]) != (wanted[0], wanted[2]):
        return False
    prefix = prefix_tokens(model)
    return bool(square(found[1], prefix) and square(wanted[1], prefix))
